"""The pool's bookkeeping on a clock that only the test moves: no device is ever booked twice, none idles for long."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Optional

import pytest

from sft_experiments.config.hydra import Request, composed
from sft_experiments.errors import ConfigError, RunFolderError
from sft_experiments.launch.start import Worker
from sft_experiments.launch.trial import Trial, plan_trial, trial_folder
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import Choice
from sft_experiments.runs.record import Status, read_record
from sft_experiments.schema import ComputeConfig, Device
from sft_experiments.sweep import concurrency, pool
from tests.plan.fake_nvml import cards

NUM_TRIALS, NUM_DEVICES = 100, 4
NAMES = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]


class Clock:
    """Seconds since the start, and the trials that run at this moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.running: list[FakeWorker] = []
        self.booked: list[tuple[str, float, float]] = []  # devices, from, until

    def monotonic(self) -> float:
        return self.now


class FakeStarter:
    """A back end whose workers only take the time that was drawn for them."""

    def __init__(self, clock: Clock, seconds: Iterator[float]) -> None:
        self.clock, self.seconds = clock, seconds

    def prepare(self, threads: int) -> None:
        """There is nothing to prepare."""

    def start(self, trial: Trial, devices: Optional[str] = None) -> Worker:
        return FakeWorker(self.clock, trial.folder, str(devices), next(self.seconds))

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        if running := self.clock.running:
            self.clock.now = min([self.clock.now + seconds, *(worker.ends for worker in running)])


class FakeWorker:
    """A process that completes its trial after the seconds that were drawn for it."""

    def __init__(self, clock: Clock, folder: RunFolder, devices: str, seconds: float) -> None:
        self.clock, self.folder, self.ends = clock, folder, clock.now + seconds
        clock.booked.append((devices, clock.now, self.ends))
        clock.running.append(self)

    @property
    def exitcode(self) -> Optional[int]:
        if self.clock.now < self.ends:
            return None
        if self in self.clock.running:
            self.clock.running.remove(self)
            record = read_record(self.folder)
            record.start({})
            record.complete(objective=1.0)
            record.write(self.folder)
        return 0

    def terminate(self) -> None:
        raise AssertionError("no trial is out of time")

    kill = terminate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, on_gpus) -> Clock:
    """Four GPUs that do not exist, and a time that does not pass by itself."""
    made = Clock()
    on_gpus(*cards(*NAMES))
    monkeypatch.setattr(pool, "write_report", lambda folder: None)
    monkeypatch.setattr(pool, "drop_weights", lambda folder, keep: 0)
    monkeypatch.setattr(pool, "time", made)
    return made


def trials(root: Path) -> list[Trial]:
    """As many copies of one planned trial, each with an id and a folder of its own."""
    with composed(["compute.device=cpu"]) as composition:
        planned = plan_trial(composition.master, Request(root=root, concurrent_trials=NUM_DEVICES))
    copies = []
    for number in range(NUM_TRIALS):
        record = replace(planned.record, trial_id=f"{number:012x}")
        copies.append(replace(planned, record=record, folder=trial_folder(root, "", record.trial_id)))
    return copies


def on_cuda(trial: Trial, num_devices: int) -> Trial:
    compute = replace(trial.config.compute, num_devices=num_devices)
    plan = replace(trial.plan, device=Choice("cuda", "a test"))
    return replace(trial, config=replace(trial.config, compute=compute), plan=plan)


@pytest.mark.parametrize("devices_per_trial", [1, 2])
def test_a_hundred_trials_on_four_devices(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices_per_trial: int
) -> None:
    draw = random.Random(7)
    seconds = [draw.uniform(20, 300) for _ in range(NUM_TRIALS)]
    groups = NUM_DEVICES // devices_per_trial
    planned = [on_cuda(trial, devices_per_trial) for trial in trials(tmp_path)]
    records = pool.Pool(planned, groups, FakeStarter(clock, iter(seconds))).run()

    assert all(record.status is Status.completed for record in records)
    assert len(clock.booked) == NUM_TRIALS
    assert clock.now <= 1.1 * sum(seconds) / groups
    for number, (devices, start_, end) in enumerate(clock.booked):
        for other, other_start, other_end in clock.booked[:number]:
            if set(devices.split(",")) & set(other.split(",")):
                assert start_ >= other_end or end <= other_start


def test_a_report_that_cannot_be_written_stops_no_trial(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise RunFolderError(f"cannot write {folder}/report.html: File too large")

    monkeypatch.setattr(pool, "write_report", refuse)
    records = pool.Pool(trials(tmp_path)[:5], 1, FakeStarter(clock, repeat(1.0))).run()
    assert [record.status for record in records] == [Status.completed] * 5


def slots(parallel: int, num_devices: int, device: str = "cuda") -> list[str | None]:
    compute = ComputeConfig(device=Device[device], num_devices=num_devices)
    with concurrency.slots(parallel, compute, device) as found:
        return [slot.visible_devices for slot in found]


def test_slots_share_the_visible_devices_out(clock: Clock) -> None:
    assert slots(4, 1) == NAMES
    assert slots(2, 2) == ["GPU-a,GPU-b", "GPU-c,GPU-d"]
    with pytest.raises(ConfigError, match=r"6 GPU.s. are needed, and of 4 visible ones 4 are free"):
        slots(3, 2)


def test_on_cpu_slots_leave_the_devices_alone() -> None:
    assert slots(3, 1, "cpu") == [None, None, None]
