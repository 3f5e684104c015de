"""Encoded documents to Arrow tables: one document or one pack per row."""

from collections.abc import Sequence

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sft_experiments.data.encode import IGNORED, Encoded
from sft_experiments.data.packing import pack_best_fit
from sft_experiments.schema import PackingStrategy

_ROWS_PER_CHUNK = 1000  # keeps list offsets far below 32 bits


def build_dataset(rows: Sequence[Encoded], packing: PackingStrategy, max_length: int) -> datasets.Dataset:
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
    return datasets.Dataset(pa.concat_tables(chunks))


def _build_chunk(groups: list[list[Encoded]], packed: bool) -> pa.Table:
    columns = {
        "input_ids": _lists([np.concatenate([row.input_ids for row in group]) for group in groups]),
        "labels": _lists([np.concatenate([_labels(row) for row in group]) for group in groups]),
    }
    if packed:
        columns["seq_lengths"] = _lists([np.array([len(row.input_ids) for row in g], dtype=np.int32) for g in groups])
    return pa.table(columns)


def _labels(row: Encoded) -> npt.NDArray[np.int32]:
    if row.labels[0] == IGNORED:
        return row.labels
    labels = row.labels.copy()
    labels[0] = IGNORED
    return labels


def _lists(arrays: list[npt.NDArray[np.int32]]) -> pa.ListArray:
    offsets = np.cumsum([0, *[len(array) for array in arrays]], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))
