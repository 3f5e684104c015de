from pathlib import Path
from typing import Any

import pytest

from sft_experiments.results.collect import collect_runs
from sft_experiments.results.comparability import comparability_notes
from tests.results.sweep_factory import write_grid, write_run


def notes_of(folder: Path) -> list[str]:
    return comparability_notes(collect_runs([folder]).runs)


def test_runs_of_one_sweep_compare_without_notes(tmp_path: Path) -> None:
    assert notes_of(write_grid(tmp_path)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprints": {"validation_data": "x", "train_data": "aa", "model": "cc"}}, "validation data differ"),
        ({"fingerprints": {"validation_data": "bb", "train_data": "x", "model": "cc"}}, "training data differ"),
        ({"fingerprints": {"validation_data": "bb", "train_data": "aa", "model": "x"}}, "models differ"),
        ({"fingerprints": {"validation_data": "bb", "train_data": "aa", "tokenizer": "x"}}, "tokenizers differ"),
        ({"metrics": {"tokens": 240_000}}, "tokens trained differ: 120k to 240k"),
        ({"environment": {"git": {"commit": "ffff"}}}, "code versions differ"),
        ({"environment": {"versions": {"torch": "2.14.0"}}}, "torch versions differ"),
    ],
)  # fmt: skip
def test_what_does_not_compare_is_said(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, 0.5, **change)
    assert any(words in note for note in notes_of(tmp_path))


def test_a_step_more_or_less_is_not_worth_a_note(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, 0.5, metrics={"tokens": 121_000})
    assert notes_of(tmp_path) == []
