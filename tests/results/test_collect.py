from pathlib import Path

import pytest

from sft_experiments.errors import RunFolderError
from sft_experiments.results.collect import collect_runs
from sft_experiments.values import flatten
from tests.results.sweep_factory import write_grid, write_run


def test_runs_of_several_folders_are_found_once_and_sorted(tmp_path: Path) -> None:
    sweep = write_grid(tmp_path / "sweep")
    collection = collect_runs([tmp_path, sweep, sweep])
    paths = [run.folder.path for run in collection.runs]
    assert len(paths) == 15
    assert paths == sorted(paths)


def test_a_single_run_folder_is_enough(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1e-3, 8, 0.5)
    assert [run.folder for run in collect_runs([folder.path]).runs] == [folder]


@pytest.mark.parametrize(
    "content",
    ["", "{half", "[]", '{"trial_id": "x"}', '{"trial_id": "x", "name": "n", "label": "l", "status": "dancing"}',
     '{"trial_id": "x", "name": "n", "label": "l", "status": "completed", "config": 3}',
     '{"trial_id": "x", "name": "n", "label": "l", "status": "completed", "schema_version": 99}'],
)  # fmt: skip
def test_a_broken_record_is_named_and_the_others_are_read(tmp_path: Path, content: str) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    broken = tmp_path / "broken" / "record.json"
    broken.parent.mkdir()
    broken.write_text(content, encoding="utf-8")
    collection = collect_runs([tmp_path])
    assert len(collection.runs) == 1
    assert len(collection.problems) == 1
    assert str(broken) in collection.problems[0]


def test_checkpoints_inside_a_run_are_not_searched(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(folder.checkpoints, 2e-3, 8, 0.4)
    assert len(collect_runs([tmp_path]).runs) == 1


def test_a_folder_without_runs_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=tmp_path.name):
        collect_runs([tmp_path])
    with pytest.raises(RunFolderError, match="no-such"):
        collect_runs([tmp_path / "no-such"])


def test_flattened_settings_keep_lists_and_empty_mappings() -> None:
    nested = {"train": {"seed": 1, "extra": {}}, "files": ["a"]}
    assert dict(flatten(nested)) == {"train.seed": 1, "train.extra": {}, "files": ["a"]}
