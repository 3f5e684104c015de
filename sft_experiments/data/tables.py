"""Encoded documents to Arrow tables: one document or one pack per row."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sft_experiments.data.encode import IGNORED, Encoded
from sft_experiments.data.packing import pack_best_fit
from sft_experiments.schema import PackingStrategy

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
