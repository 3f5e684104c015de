"""Best-fit decreasing packing: documents share a sequence, none is cut."""

from collections.abc import Sequence


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Document indices of each pack. Every document must fit: ``max(lengths) <= capacity``.

    Longest first, each into the fullest pack that still has room. Packs are kept by their free space, and the set of
    free spaces in use is the bits of one integer: the smallest space that is big enough is its lowest set bit.
    Ties go to the document that came first, so the result depends on the lengths alone.
    """
    packs: list[list[int]] = []
    packs_with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces_in_use = 0
    for document in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[document]
        fitting = spaces_in_use >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            pack = packs_with_space[space].pop()
            if not packs_with_space[space]:
                spaces_in_use &= ~(1 << space)
        else:
            space, pack = capacity, len(packs)
            packs.append([])
        packs[pack].append(document)
        packs_with_space[space - length].append(pack)
        spaces_in_use |= 1 << (space - length)
    return packs
