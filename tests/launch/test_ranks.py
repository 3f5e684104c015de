"""What the ranks' launcher saw of its ranks, and what becomes of it in the record."""

from pathlib import Path

import pytest

from sft_experiments.launch.ranks import STARTS, RankFailure, first_failure, rank_command, write_failure
from sft_experiments.launch.settle import settle
from sft_experiments.launch.start import worker_environment
from sft_experiments.runs.folder import RunFolder, find_run_folders, folder_of
from sft_experiments.runs.plan_file import BatchPlan, Choice, Plan, write_plan
from sft_experiments.runs.record import Failure, Record, Status, read_record


def two_ranks(path: Path, status: Status, code: int) -> RunFolder:
    """A trial over two ranks whose second one ended with ``code``."""
    folder = RunFolder(path)
    record = Record("abc", "name", "label", status)
    write_plan(folder, Plan(BatchPlan(4, 1, 2), Choice("cpu", ""), Choice("fp32", ""), threads=2))
    if status is Status.failed:
        record.failure = Failure("RuntimeError", "connection closed by peer")
    record.write(folder)
    folder.log.write_text(f"{STARTS.format(2)}\nstep 1\nlast words\n")
    write_failure(folder, RankFailure(1, code))
    return folder


@pytest.mark.parametrize("status", [Status.running, Status.failed, Status.preempted])
@pytest.mark.parametrize(
    ("code", "expected", "kind"), [(-9, Status.killed, "SIGKILL"), (11, Status.failed, "exit code 11")]
)
def test_a_rank_that_died_without_a_word_decides_whatever_the_first_made_of_it(
    tmp_path: Path, status: Status, code: int, expected: Status, kind: str
) -> None:
    folder = two_ranks(tmp_path, status, code)
    record = settle(folder, 1)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (expected, kind)
    assert record.failure.message.startswith("rank 1 ended with")
    assert record.failure.log_tail[-1] == "last words"
    assert read_record(folder) == record


def test_the_reason_that_the_failing_rank_recorded_becomes_that_of_the_trial(tmp_path: Path) -> None:
    folder = two_ranks(tmp_path, Status.failed, 1)
    own = Record("abc", "name", "label", Status.oom, failure=Failure("OutOfMemoryError", "no room"))
    own.write(folder_of(folder, 1))
    record = settle(folder, 1)
    assert record.failure is not None
    assert (record.status, record.failure.message) == (Status.oom, "no room")
    assert [found.path for found in find_run_folders(tmp_path)] == [tmp_path]  # a rank's record is no trial


def test_an_end_in_order_stays_what_it_is(tmp_path: Path) -> None:
    assert settle(two_ranks(tmp_path / "completed", Status.completed, 1), 1).status is Status.completed
    stopped = two_ranks(tmp_path / "stopped", Status.preempted, -9)
    rank_command(stopped, 2)  # a later attempt, in which no rank failed
    assert first_failure(stopped) is None
    assert settle(stopped, 1).status is Status.preempted


def test_the_launcher_of_the_ranks_that_is_killed_counts_as_killed(tmp_path: Path) -> None:
    folder = two_ranks(tmp_path, Status.running, 1)
    record = settle(folder, -9)
    assert record.failure is not None
    assert (record.status, record.failure.kind) == (Status.killed, "SIGKILL")


def test_ranks_share_the_threads_and_have_a_minute_to_save(tmp_path: Path) -> None:
    environment = worker_environment(4, ranks=2)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "60"
    command = rank_command(RunFolder(tmp_path), 2)
    assert command[1:] == ["-m", "sft_experiments.launch.rank_launcher", "2", str(tmp_path)]
    assert RunFolder(tmp_path).log.read_text() == "starts 2 ranks\n"
