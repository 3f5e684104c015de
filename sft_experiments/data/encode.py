"""Rendered rows to token ids and labels, a batch at a time.

Labels are aligned with ``input_ids`` (the shift by one happens in the loss); -100 is not supervised.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.formats import Conversation, RowFault
from sft_experiments.data.gate import OVERLONG, Gate
from sft_experiments.data.template import ChatRenderer, Rendered, Span
from sft_experiments.errors import ModelError
from sft_experiments.schema import Overlong, PackingStrategy, Policy, TrainOn

IGNORED = -100
Ids = npt.NDArray[np.int32]


@dataclass(slots=True)
class Encoded:
    """One document. ``input_ids`` and ``labels`` have the same length."""

    conversation: Conversation
    input_ids: Ids
    labels: Ids
    text: str
    spans: list[Span]  # supervised characters of text
    method: str  # how the spans were found
    is_cut: bool = False  # an answer lost its end token to max_length

    def num_supervised(self) -> int:
        """Tokens the loss sees; the first token of a document is never predicted."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


class Encoder:
    """Renders, tokenizes and masks conversations for one tokenizer and one ``dataset.train_on``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer without character offsets; masks need a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.train_on = train_on
        self._backend: Any = tokenizer.backend_tokenizer
        self._renderer: Optional[ChatRenderer] = None

    @property
    def renderer(self) -> ChatRenderer:
        """Made when the first conversation comes: plain text needs no chat template."""
        if self._renderer is None:
            self._renderer = ChatRenderer(self.tokenizer)
        return self._renderer

    def encode(self, conversations: Sequence[Conversation]) -> list[Union[Encoded, RowFault]]:
        """One result per conversation, in order; a row that cannot be rendered or masked is a ``RowFault``."""
        rendered = [self._render(conversation) for conversation in conversations]
        texts = [item.text for item in rendered if isinstance(item, Rendered)]
        encodings = iter(self._tokenize(texts, add_special_tokens=any(c.text is not None for c in conversations)))
        return [
            self._label(conversation, item, next(encodings)) if isinstance(item, Rendered) else item
            for conversation, item in zip(conversations, rendered, strict=True)
        ]

    def _render(self, conversation: Conversation) -> Union[Rendered, RowFault]:
        try:
            return self._render_checked(conversation)
        except RowFault as fault:
            return fault

    def _render_checked(self, conversation: Conversation) -> Rendered:
        rendered = self._rendered(conversation)
        try:
            rendered.text.encode()
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair; tokenizers raise TypeError on it
            raise RowFault("unreadable_row", f"holds {rendered.text[error.start]!r}, which is no character") from None
        return rendered

    def _rendered(self, conversation: Conversation) -> Rendered:
        if conversation.text is not None:
            eos = str(self.tokenizer.eos_token or "")
            text = conversation.text if conversation.text.endswith(eos) else conversation.text + eos
        elif self.train_on is TrainOn.all:
            text = self.renderer.render_text(conversation)
        else:
            return self.renderer.render(conversation, supervised_turns(conversation, self.train_on))
        return Rendered(text, [(0, len(text))], "all")

    def _tokenize(self, texts: list[str], add_special_tokens: bool) -> Any:
        """The Rust tokenizer at once over the batch; same ids as calling the tokenizer on each text."""
        self._backend.no_truncation()
        self._backend.no_padding()
        return self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)

    def _label(self, conversation: Conversation, rendered: Rendered, encoding: Any) -> Encoded:
        input_ids = np.array(encoding.ids, dtype=np.int32)
        if rendered.method == "all":
            labels = input_ids.copy()
        else:
            labels = np.full_like(input_ids, IGNORED)
            for start, end in rendered.spans:
                tokens = _tokens_of(encoding, start, end)
                labels[tokens] = input_ids[tokens]
        return Encoded(conversation, input_ids, labels, rendered.text, rendered.spans, rendered.method)


def supervised_turns(conversation: Conversation, train_on: TrainOn) -> list[int]:
    """Indices of the assistant turns that the loss sees."""
    turns = conversation.assistant_turns()
    return turns[-1:] if train_on is TrainOn.last_assistant else turns


def _tokens_of(encoding: Any, start: int, end: int) -> slice:
    """Tokens that hold any of the characters [start, end). Characters without a token (dropped spaces) are skipped."""
    first = next((t for at in range(start, end) if (t := encoding.char_to_token(at)) is not None), None)
    last = next((t for at in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(at)) is not None), None)
    return slice(0, 0) if first is None or last is None else slice(first, last + 1)


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


_ROWS_PER_CHUNK = 1000  # keeps list offsets far below 32 bits


def build_table(rows: Sequence[Encoded], packing: PackingStrategy, max_length: int) -> pa.Table:
    """Columns ``input_ids`` and ``labels``, and ``seq_lengths`` (tokens of each document in the row) when packed.

    The first token of a document is never supervised: in a pack it would be predicted from the document before.
    """
    if packing is PackingStrategy.none:
        groups = [[index] for index in range(len(rows))]
    else:
        groups = pack_best_fit([len(row.input_ids) for row in rows], max_length)
    packed = packing is not PackingStrategy.none
    chunks = [
        _build_chunk([[rows[index] for index in group] for group in groups[start : start + _ROWS_PER_CHUNK]], packed)
        for start in range(0, len(groups), _ROWS_PER_CHUNK)
    ]
    return pa.concat_tables(chunks)


def _build_chunk(groups: list[list[Encoded]], packed: bool) -> pa.Table:
    documents = [row for group in groups for row in group]
    lengths = np.array([len(row.input_ids) for row in documents], dtype=np.int32)
    first_tokens = _offsets(lengths)
    first_documents = _offsets([len(group) for group in groups])
    labels = np.concatenate([row.labels for row in documents])
    labels[first_tokens[:-1]] = IGNORED
    tokens = first_tokens[first_documents]  # where each group starts
    columns = {
        "input_ids": _lists(np.concatenate([row.input_ids for row in documents]), tokens),
        "labels": _lists(labels, tokens),
    }
    if packed:
        columns["seq_lengths"] = _lists(lengths, first_documents)
    return pa.table(columns)


def _offsets(lengths: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Where each part starts when they stand one after another, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _lists(values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int32]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def write_table(table: pa.Table, file: Path) -> None:
    """The rows as an Arrow stream, the format that ``datasets`` memory-maps."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def read_table(file: Path) -> Optional[datasets.Dataset]:
    """The memory-mapped rows, or None when the split does not exist."""
    return datasets.Dataset.from_file(str(file)) if file.exists() else None
