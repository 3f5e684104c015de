"""Records are written whole or not at all, and are read back as they were."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.errors import RunFolderError
from sft_experiments.files import write_json_atomically, write_text_atomically
from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.record import SCHEMA_VERSION, Failure, Record, Status, read_record


@given(status=st.sampled_from(Status), objective=st.none() | st.floats(allow_nan=False), notes=st.lists(st.text()))
def test_a_record_survives_the_way_through_its_file(tmp_path_factory, status, objective, notes) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    record = Record("abc", "name", "label", status, objective=objective, notes=notes, failure=Failure("kind", "why"))
    record.write(folder)
    assert read_record(folder) == record


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_json_atomically(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json_atomically(file, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(file, "\ud800")
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_files_can_be_read_by_those_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text_atomically(tmp_path / "report.html", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o644


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_text_atomically(tmp_path / "file" / "record.json", "")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "completed"}'])
def test_a_broken_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"record\.json"):
        read_record(RunFolder(tmp_path))


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Record("abc", "name", "label", schema_version=SCHEMA_VERSION + 1).write(RunFolder(tmp_path))
    with pytest.raises(RunFolderError, match=f"reads up to {SCHEMA_VERSION}"):
        read_record(RunFolder(tmp_path))


def test_runs_are_found_below_a_folder_but_not_in_hidden_ones_or_inside_runs(tmp_path: Path) -> None:
    for place in ("sweep/one", "sweep/two", "sweep/.superseded/one.1", "sweep/one/checkpoints/inner"):
        Record("abc", "name", "label").write(RunFolder(tmp_path / place))
    assert [folder.path for folder in find_run_folders(tmp_path)] == [tmp_path / "sweep/one", tmp_path / "sweep/two"]


def test_a_record_changes_its_status_only_in_ways_that_a_trial_can_take() -> None:
    def became(status: Status, change: Callable[[Record], None]) -> bool:
        record = Record("abc", "name", "label", status)
        try:
            change(record)
        except AssertionError as error:
            assert (record.status, "cannot become" in str(error)) == (status, True)
            return False
        return True

    def from_which(change: Callable[[Record], None]) -> set[Status]:
        return {status for status in Status if became(status, change)}

    assert from_which(lambda record: record.start({})) == set(Status)  # also by hand
    assert from_which(lambda record: record.complete(0.5)) == {Status.running}
    failed = {status for status in Status if status.is_failure}
    # A sweep may take a trial up that was stopped, or failed and is to be tried again, and leave it at its rung.
    assert from_which(Record.wait_at_rung) == {Status.pending, Status.running, Status.preempted, Status.pruned}
    assert from_which(Record.stop) == {Status.pending, Status.running, Status.preempted} | failed
    out_of_memory = Failure("kind", "why")
    assert from_which(lambda record: record.fail(Status.oom, out_of_memory)) == set(Status) - {Status.completed}
