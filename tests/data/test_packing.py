from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.data.encode import pack_best_fit

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


@given(LENGTHS)
def test_every_document_is_packed_once_and_no_pack_overflows(lengths):
    packs = pack_best_fit(lengths, 64)
    assert sorted(document for pack in packs for document in pack) == list(range(len(lengths)))
    assert all(sum(lengths[document] for document in pack) <= 64 for pack in packs)


@given(LENGTHS)
def test_no_two_packs_could_be_one(lengths):
    fills = sorted(sum(lengths[document] for document in pack) for pack in pack_best_fit(lengths, 64))
    assert len(fills) < 2 or fills[0] + fills[1] > 64


@given(LENGTHS)
def test_it_is_the_best_fit_of_the_textbook(lengths):
    """The bits of an integer find what a search over all packs finds."""
    packs: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        free = [64 - sum(lengths[d] for d in pack) for pack in packs]
        fitting = [space for space in free if space >= lengths[document]]
        if fitting:
            best = max(index for index, space in enumerate(free) if space == min(fitting))
            packs[best].append(document)
        else:
            packs.append([document])
    ours = pack_best_fit(lengths, 64)
    fills = sorted(sum(lengths[d] for d in pack) for pack in packs)
    assert sorted(sum(lengths[d] for d in pack) for pack in ours) == fills


def test_the_result_depends_on_the_lengths_alone():
    assert pack_best_fit([5, 5, 3, 2, 2], 8) == [[0, 3], [1, 2], [4]]
