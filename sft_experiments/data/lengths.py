"""Rows longer than ``dataset.max_length``: dropped, truncated or split (``dataset.overlong``), always counted."""

from collections.abc import Iterable, Iterator

from sft_experiments.data.encode import IGNORED, Encoded
from sft_experiments.data.gate import Gate
from sft_experiments.data.rules import OVERLONG
from sft_experiments.schema import Overlong, Policy


def fit_rows(rows: Iterable[Encoded], split: str, max_length: int, overlong: Overlong, gate: Gate) -> list[Encoded]:
    """Rows of at most ``max_length`` tokens that have something to learn, in the original order."""
    return [piece for row in rows for piece in _fit(row, split, max_length, overlong, gate)]


def _fit(row: Encoded, split: str, max_length: int, overlong: Overlong, gate: Gate) -> Iterator[Encoded]:
    origin, length = row.conversation.origin, len(row.input_ids)
    pieces = [row]
    if length > max_length:
        policy = Policy.drop if overlong is Overlong.drop else Policy.warn
        gate.count(OVERLONG, split, origin, f"{length} tokens", policy)
        if overlong is Overlong.drop:
            return
        pieces = _cut(row, max_length, overlong)
    kept = [piece for piece in pieces if piece.num_supervised()]
    if not kept:
        gate.reject("nothing_supervised", split, origin, f"{length} tokens, none supervised within max_length")
    elif any(piece.is_cut for piece in kept) and not gate.report("answer_cut", split, origin, f"{length} tokens"):
        return
    yield from kept


def _cut(row: Encoded, max_length: int, overlong: Overlong) -> list[Encoded]:
    """The first ``max_length`` tokens, or all tokens in pieces of ``max_length``."""
    supervised = row.labels != IGNORED
    length = len(supervised)
    if overlong is Overlong.truncate:
        return [_piece(row, 0, max_length, is_cut=bool(supervised[max_length:].any()))]
    return [
        _piece(row, start, end, is_cut=end < length and bool(supervised[end - 1] and supervised[end]))
        for start, end in ((start, start + max_length) for start in range(0, length, max_length))
    ]


def _piece(row: Encoded, start: int, end: int, is_cut: bool) -> Encoded:
    ids, labels = row.input_ids[start:end], row.labels[start:end]
    return Encoded(row.conversation, ids, labels, row.text, row.spans, row.method, is_cut)
