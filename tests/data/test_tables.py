"""Tables against the plainest way to write them, over more rows than one chunk holds."""

import numpy as np
import pytest

from sft_experiments.data.encode import IGNORED, Encoded, build_table, pack_best_fit
from sft_experiments.data.formats import Conversation, Origin
from sft_experiments.schema import PackingStrategy


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)

    def row(number):
        ids = rng.integers(0, 100, rng.integers(1, 9), dtype=np.int32)
        labels = np.where(rng.random(len(ids)) < 0.5, ids, IGNORED).astype(np.int32)
        return Encoded(Conversation([], Origin("rows", number), text=""), ids, labels, "", [], "markers")

    return [row(number) for number in range(2500)]


def without_first(row):
    """Its labels; nothing predicts the first token of a document."""
    return [IGNORED, *row.labels.tolist()[1:]]


def test_unpacked_tables_hold_every_row_in_order(rows):
    table = build_table(rows, PackingStrategy.none, 16)
    assert table.to_pydict() == {
        "input_ids": [row.input_ids.tolist() for row in rows],
        "labels": [without_first(row) for row in rows],
    }


def test_packed_tables_hold_the_documents_of_each_pack_and_their_lengths(rows):
    table = build_table(rows, PackingStrategy.bfd, 16)
    packs = [[rows[index] for index in pack] for pack in pack_best_fit([len(row.input_ids) for row in rows], 16)]
    assert len(packs) > 500
    assert table.to_pydict() == {
        "input_ids": [[token for row in pack for token in row.input_ids.tolist()] for pack in packs],
        "labels": [[label for row in pack for label in without_first(row)] for pack in packs],
        "seq_lengths": [[len(row.input_ids) for row in pack] for pack in packs],
    }


def test_a_row_in_several_packs_keeps_its_own_labels(rows):
    """A mixture may take a row twice; writing the table changes no row."""
    first = next(row for row in rows if row.labels[0] != IGNORED)
    build_table([first, first], PackingStrategy.bfd, 16)
    assert first.labels[0] != IGNORED
