"""A sweep that is stopped, in order or by force, goes on with the same command and ends as if it had never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.record import Status, read_record
from sft_experiments.sweep.board import latest_metrics
from tests.sweep.conftest import QUIET_RATES, TINY, Done

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "sft_experiments", "train", "-m", *TINY, QUIET_RATES]
Launch = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def launch(tmp_path: Path, faulty_environment: dict[str, str], plant: Callable[..., None]) -> Iterator[Launch]:
    """Start the sweep as a process of its own, in a session of its own, each step of it slowed down."""
    plant({"at": "every step", "do": "linger"})
    environment = {**faulty_environment, "SWEEP_OF_TEST": str(tmp_path)}
    launched: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        options = {"cwd": tmp_path, "env": environment, "start_new_session": True, "text": True}
        launched.append(subprocess.Popen(COMMAND, stdout=pipe, stderr=subprocess.STDOUT, **options))  # type: ignore
        return launched[-1]

    yield start
    for process in launched:
        process.kill()
        process.communicate()


def processes_of(home: Path) -> list[int]:
    """Every living process that was started for the sweep in ``home``."""
    mark, found = f"SWEEP_OF_TEST={home}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile, or is not ours
    return found


def wait_until(reached: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def steps_done(home: Path) -> int:
    """Optimizer steps that all trials together have logged."""
    folders = [RunFolder(file.parent) for file in home.glob("outputs/*/*/metrics.jsonl")]
    return sum(int(latest_metrics(folder).get("step", 0)) for folder in folders)


def first_event(path: Path) -> str:
    return RunFolder(path).metrics.read_text().splitlines()[0]


def assert_as_if_quiet(done: Done, quiet: Done) -> None:
    assert done.code == 0, done.shown
    assert len(done.records()) == len(quiet.records())
    for rate, record in quiet.by_rate().items():
        assert done.by_rate()[rate].objective == record.objective
        assert done.weights(rate) == quiet.weights(rate)
        events = [json.loads(line) for line in done.trial(rate).metrics.read_text().splitlines()]
        steps = [event["step"] for event in events if "eval/loss" in event]
        assert steps == sorted(set(steps)), steps  # nothing twice


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_stopped_sweep_saves_checkpoints_and_goes_on_from_them(
    launch: Launch, sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done, tmp_path: Path, number: int,
    code: int,
) -> None:  # fmt: skip
    process = launch()
    wait_until(lambda: steps_done(tmp_path) >= 3 or process.poll() is not None)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == code, shown
    assert "the same command goes on" in shown
    wait_until(lambda: not processes_of(tmp_path), 20)
    records = {folder.path: read_record(folder) for folder in find_run_folders(tmp_path)}
    stopped = [path for path, record in records.items() if record.status is Status.preempted]
    assert stopped
    assert all(record.failure is None for record in records.values())
    started = {path: first_event(path) for path in stopped if list(path.glob("checkpoints/*/complete.json"))}
    assert started
    plant()
    assert_as_if_quiet(sweep(QUIET_RATES), quiet)
    for path, event in started.items():
        assert first_event(path) == event  # with its time: the trial did not begin anew
        assert read_record(RunFolder(path)).attempts == 2


def test_ctrl_c_twice_at_once_fails_no_trial(
    launch: Launch, sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done, tmp_path: Path
) -> None:
    process = launch()
    wait_until(lambda: steps_done(tmp_path) >= 3 or process.poll() is not None)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)  # the trials have not been asked to stop yet
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert not any(read_record(folder).status.is_failure for folder in find_run_folders(tmp_path)), shown
    plant()
    assert_as_if_quiet(sweep(QUIET_RATES), quiet)


@pytest.mark.parametrize("seconds", [0.1, 1.5])
def test_ctrl_c_before_the_first_trial_trains_fails_no_trial(launch: Launch, tmp_path: Path, seconds: float) -> None:
    process = launch()
    wait_until(lambda: bool(list(tmp_path.rglob("record.json"))) or process.poll() is not None)
    time.sleep(seconds)  # its starter imports torch
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert not any(read_record(folder).status.is_failure for folder in find_run_folders(tmp_path)), shown
    wait_until(lambda: not processes_of(tmp_path), 20)


def kill_at_step(process: subprocess.Popen[str], home: Path, moment: int) -> None:
    """SIGKILL for the sweep, not for its trials, when they have done so many steps together."""
    wait_until(lambda: bool(list(home.rglob("sweep.json"))))
    wait_until(lambda: steps_done(home) >= moment or process.poll() is not None)
    process.kill()
    process.wait()


def test_a_sweep_killed_again_and_again_ends_as_the_quiet_one(
    launch: Launch, sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done, tmp_path: Path
) -> None:
    moments = [0, *sorted(random.Random(5).sample(range(2, 16), 2))]  # steps of 18
    completed: dict[Path, bytes] = {}
    folders: set[Path] = set()
    for moment in moments:
        kill_at_step(launch(), tmp_path, moment)
        found = find_run_folders(tmp_path)
        assert folders <= {folder.path for folder in found}
        folders = {folder.path for folder in found}
        for path, content in completed.items():
            assert RunFolder(path).record.read_bytes() == content
        completed = {
            folder.path: folder.record.read_bytes()
            for folder in found
            if read_record(folder).status is Status.completed
        }
    plant()
    done = sweep(QUIET_RATES)  # at once: trials of the killed launch may still be saving
    assert_as_if_quiet(done, quiet)
    assert max(record.attempts for record in done.records()) > 1
    assert folders <= {folder.path for folder in find_run_folders(tmp_path)}
    wait_until(lambda: not processes_of(tmp_path), 20)


def test_a_single_run_whose_command_is_killed_stops_with_a_checkpoint(
    plant: Callable[..., None], faulty_environment: dict[str, str], tmp_path: Path
) -> None:
    plant({"at": "every step", "do": "linger"})
    command = [sys.executable, "-m", "sft_experiments", "train", *TINY, "train.max_steps=60"]
    environment = {**faulty_environment, "SWEEP_OF_TEST": str(tmp_path)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    metrics = "outputs/*/*/metrics.jsonl"
    wait_until(lambda: any(file.stat().st_size for file in tmp_path.glob(metrics)) or process.poll() is not None)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(tmp_path), 30)
    (folder,) = find_run_folders(tmp_path)
    assert read_record(folder).status is Status.preempted
    assert list(folder.checkpoints.glob("checkpoint-*/complete.json"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_while_a_single_run_is_still_importing_stops_it(
    faulty_environment: dict[str, str], tmp_path: Path, ranks: int
) -> None:
    command = [sys.executable, "-m", "sft_experiments", "train", *TINY, f"compute.num_devices={ranks}"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=faulty_environment, **options)  # type: ignore[call-overload]
    wait_until(lambda: bool(list(tmp_path.rglob("record.json"))) or process.poll() is not None)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "the same command goes on" in shown
    (folder,) = find_run_folders(tmp_path)
    assert (read_record(folder).status, read_record(folder).failure) == (Status.preempted, None)


def test_the_second_of_two_launches_at_once_refuses(
    launch: Launch, sweep: Callable[..., Done], plant: Callable[..., None], tmp_path: Path
) -> None:
    first = launch()
    wait_until(lambda: steps_done(tmp_path) >= 1 or first.poll() is not None)
    second = sweep(QUIET_RATES)
    assert second.code == 6
    assert "a sweep is already running there" in second.shown
    shown, _ = first.communicate(timeout=240)
    assert first.returncode == 0, shown
    assert {record.attempts for record in second.records()} == {1}


@pytest.mark.parametrize("damage", ["cut", "missing", "unmarked"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(
    sweep: Callable[..., Done], plant: Callable[..., None], quiet: Done, damage: str
) -> None:
    plant({"at": 5, "do": "be_killed", "once": True})
    settings = ["train.learning_rate=0.001", "train.save_total_limit=2"]
    done = sweep(*settings, "sweep.retries=0")
    assert done.by_rate()[0.001].status is Status.killed
    checkpoints = done.trial(0.001).checkpoints
    newest = max(checkpoints.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    if damage == "cut":
        os.truncate(newest / "model.safetensors", 1000)
    else:
        (newest / {"missing": "optimizer.pt", "unmarked": "complete.json"}[damage]).unlink()
    again = sweep(*settings, "sweep.retry_failed=true")
    assert again.code == 0, again.shown
    assert any("was set aside" in note for note in again.by_rate()[0.001].notes)
    assert (checkpoints / f"broken-{newest.name}").is_dir()
    assert again.weights(0.001) == quiet.weights(0.001)
