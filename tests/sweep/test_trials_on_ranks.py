"""A trial on several devices is one trial: the same result, the same classes of failure, and nothing left behind."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_experiments.runs.folder import find_run_folders, folder_of
from sft_experiments.runs.plan_file import BatchPlan
from sft_experiments.runs.record import Record, Status, read_record
from sft_experiments.sweep import pool
from tests.sweep.conftest import Done
from tests.sweep.test_stopping import COMMAND, Launch, first_event, processes_of, steps_done, wait_until

pytestmark = pytest.mark.slow

TWO_RANKS = "compute.num_devices=2"
RATES = "train.learning_rate=0.001,0.002"
TIMINGS = {"data", "model", "train", "evaluate", "save", "total"}


@pytest.fixture(scope="module")
def on_two_ranks(sweep_in: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two cells, both at once, each over two ranks. Read it, do not change it."""
    done = sweep_in(tmp_path_factory.mktemp("two_ranks"), RATES, TWO_RANKS, "sweep.concurrent_trials=2")
    assert done.code == 0, done.shown
    return done


def assert_equal_result(record: Record, other: Record) -> None:
    for name in ("eval/loss", "train/loss", "eval/mean_token_accuracy"):
        assert record.metrics[name] == pytest.approx(other.metrics[name], abs=1e-5), name
    for name in ("tokens", "total_steps", "best/step", "eval/exact_match"):
        assert record.metrics[name] == other.metrics[name], name


def test_two_ranks_give_the_result_of_one(on_two_ranks: Done, quiet: Done) -> None:
    for rate, record in on_two_ranks.by_rate().items():
        one = quiet.by_rate()[rate]
        assert_equal_result(record, one)
        assert record.trial_id != one.trial_id  # the last bits differ, so the number of devices is part of the id
        batch = on_two_ranks.plan(rate).batch
        assert (batch, batch.effective_batch_size) == (BatchPlan(4, 1, 2), 8)
        assert (record.status, record.attempts, record.failure, record.notes) == (Status.completed, 1, None, [])
        assert {*record.timings} >= TIMINGS
        assert record.environment["threads"] == 1


def test_only_the_first_rank_shows_anything(on_two_ranks: Done, quiet: Done) -> None:
    assert len(on_two_ranks.records()) == 2  # the other ranks' records are not trials
    folder, one = on_two_ranks.trial(0.001), quiet.trial(0.001)
    events, expected = ([json.loads(line) for line in at.metrics.read_text().splitlines()] for at in (folder, one))
    assert [event["step"] for event in events] == [event["step"] for event in expected]
    assert [event["tokens"] for event in events] == [event["tokens"] for event in expected]
    assert folder.samples.read_text().count("\n") == one.samples.read_text().count("\n")
    assert folder.log.read_text().count("eval loss") == one.log.read_text().count("eval loss")
    assert read_record(folder_of(folder, 1)).status is Status.completed


@pytest.fixture
def launch(tmp_path: Path, faulty_environment: dict[str, str], plant: Callable[..., None]) -> Iterator[Launch]:
    """The sweep over two ranks as a process of its own, each step slowed down."""
    plant({"at": "every step", "do": "linger"})
    environment = {**faulty_environment, "SWEEP_OF_TEST": str(tmp_path)}
    command = [*COMMAND[:-1], RATES, TWO_RANKS, "sweep.concurrent_trials=2"]
    launched: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        launched.append(
            subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **output)  # type: ignore
        )
        return launched[-1]

    yield start
    for process in launched:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["sigterm", "sigkill"])
def test_a_stopped_sweep_leaves_no_rank_behind_and_goes_on_from_its_checkpoints(
    launch: Launch, sweep: Callable[..., Done], plant: Callable[..., None], on_two_ranks: Done, tmp_path: Path,
    number: int,
) -> None:  # fmt: skip
    process = launch()
    wait_until(lambda: steps_done(tmp_path) >= 2 or process.poll() is not None)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), shown
    wait_until(lambda: not processes_of(tmp_path), 30)
    stopped = [folder.path for folder in find_run_folders(tmp_path) if read_record(folder).status is Status.preempted]
    assert stopped
    assert all(list(path.glob("checkpoints/*/complete.json")) for path in stopped)
    begun = {path: first_event(path) for path in stopped}
    plant()
    done = sweep(RATES, TWO_RANKS, "sweep.concurrent_trials=2")
    assert done.code == 0, done.shown
    for rate, record in on_two_ranks.by_rate().items():
        assert done.by_rate()[rate].objective == record.objective
        assert done.weights(rate) == on_two_ranks.weights(rate)
    assert all(first_event(path) == event for path, event in begun.items())  # did not begin anew


FAULTS = {
    0.0011: ("fail", 1),
    0.0012: ("leave_at_once", 1),
    0.0013: ("be_killed", 1),
    0.0015: ("run_out_of_memory", 1),
    0.0016: ("fail", 0),
}


def test_each_way_in_which_one_rank_can_end_is_recorded_as_with_one_process(
    sweep: Callable[..., Done], plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool, "GRACE_SECONDS", 1.0)
    plant(
        *(
            {"in": {"learning_rate": rate, "process_index": rank}, "at": 3, "do": do, "fits": 0}
            for rate, (do, rank) in FAULTS.items()
        )
    )
    rates = "train.learning_rate=" + ",".join(map(str, [1e30, *sorted(FAULTS)]))
    done = sweep(rates, TWO_RANKS, "sweep.concurrent_trials=2", "sweep.retries=1")
    found = done.by_rate()
    assert {rate: record.status for rate, record in found.items()} == {
        0.0011: Status.failed,
        0.0012: Status.failed,
        0.0013: Status.killed,
        0.0015: Status.oom,
        0.0016: Status.failed,
        1e30: Status.diverged,
    }, done.shown
    failures = {rate: record.failure for rate, record in found.items() if record.failure}
    for rate in (0.0011, 0.0016):
        assert failures[rate].message == "planted error"
        assert any("ValueError: planted error" in line for line in failures[rate].log_tail)
    assert failures[0.0012].kind == "exit code 11"
    assert failures[0.0013].kind == "SIGKILL"
    assert "rank 1" in failures[0.0013].message
    assert "peft=lora" in failures[0.0015].message
    assert [found[rate].attempts for rate in (0.0011, 0.0013, 0.0015)] == [1, 2, 3]  # 4, 2 and 1 per device
    wait_until(lambda: not processes_with(str(tmp_path)), 30)


def test_a_rank_that_hangs_is_stopped_with_the_others(
    sweep: Callable[..., Done], plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool, "GRACE_SECONDS", 1.0)
    plant({"in": {"process_index": 1}, "at": 3, "do": "hang"})
    done = sweep("train.learning_rate=0.0014", TWO_RANKS, "sweep.timeout_seconds=30")
    assert [record.status for record in done.records()] == [Status.timeout], done.shown
    wait_until(lambda: not processes_with(str(tmp_path)), 30)


def processes_with(argument: str) -> list[str]:
    """Commands of living processes that name a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if argument in command and "training.worker" in command:
            found.append(command)
    return found


def test_a_killed_rank_and_a_smaller_batch_do_not_change_the_result(
    sweep: Callable[..., Done], plant: Callable[..., None], on_two_ranks: Done
) -> None:
    plant(
        {"in": {"learning_rate": 0.001, "process_index": 0}, "at": 4, "do": "be_killed", "once": True},
        {"in": {"learning_rate": 0.002, "process_index": 1}, "at": 2, "do": "run_out_of_memory", "fits": 2},
    )
    done = sweep(RATES, TWO_RANKS, "sweep.concurrent_trials=2")
    assert done.code == 0, done.shown
    assert [record.attempts for record in done.records()] == [2, 2]
    assert done.weights(0.001) == on_two_ranks.weights(0.001)
    assert_equal_result(done.by_rate()[0.002], on_two_ranks.by_rate()[0.002])
    assert done.plan(0.002).batch.per_device_train_batch_size == 2


def test_a_rank_that_runs_out_of_memory_in_evaluation_does_not_change_the_result(
    sweep: Callable[..., Done], plant: Callable[..., None], on_two_ranks: Done
) -> None:
    plant({"in": {"process_index": 1}, "at": "evaluation", "do": "evaluate_too_much", "fits": 8})
    done = sweep("train.learning_rate=0.002", TWO_RANKS)
    assert done.code == 0, done.shown
    (record,) = done.records()
    assert record.attempts == 2
    assert record.notes == ["out of memory in evaluation with 16 per device: continued with 8, the same loss"]
    assert done.plan(0.002).largest_eval_batch == 8
    assert done.plan(0.002).batch == on_two_ranks.plan(0.002).batch
    assert_equal_result(record, on_two_ranks.by_rate()[0.002])
    assert done.weights(0.002) == on_two_ranks.weights(0.002)


def test_a_resumed_epoch_counts_no_row_of_its_partial_last_step_twice(
    sweep_in: Callable[..., Done], plant: Callable[..., None], tmp_path: Path
) -> None:
    settings = [TWO_RANKS, "train.learning_rate=0.002", "train.max_steps=null", "train.num_train_epochs=1"]
    settings += ["dataset.demo.num_train=28"]  # three steps of eight rows and one of four
    done = []
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        if name == "resumed":
            plant({"in": {"process_index": 1}, "at": 2, "do": "be_killed", "once": True})
        done.append(sweep_in(tmp_path / name, *settings))
        assert done[-1].code == 0, done[-1].shown
    (whole,), (resumed,) = (each.records() for each in done)
    assert (whole.attempts, resumed.attempts) == (1, 2)
    assert "goes on from step" in done[1].trial(0.002).log.read_text()
    assert whole.metrics["tokens"] == done[0].plan(0.002).steps.tokens_per_epoch
    assert_equal_result(resumed, whole)
    assert done[1].weights(0.002) == done[0].weights(0.002)
