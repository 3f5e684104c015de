"""The local launcher: one clean process per trial, several at once, and a record for whatever becomes of each."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Optional

from sft_experiments.errors import RunFolderError, TrainingFailed
from sft_experiments.files import is_held
from sft_experiments.launch.retry import Limits, advise_on_memory, limited, recall, same_shape, smaller_batch
from sft_experiments.launch.settle import settle
from sft_experiments.launch.start import Starter, WarmStarter, Worker
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.machine import check_sharding
from sft_experiments.report.publish import write_report
from sft_experiments.runs.folder import RunFolder, log_tail
from sft_experiments.runs.record import Failure, Record, Status, read_record
from sft_experiments.schema import SweepConfig
from sft_experiments.sweep.board import Board, open_board
from sft_experiments.sweep.concurrency import Slot, slots
from sft_experiments.sweep.finish import drop_weights
from sft_experiments.sweep.planning import Planner
from sft_experiments.sweep.queue import Queue
from sft_experiments.sweep.rungs import open_queue

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0  # for a checkpoint after SIGTERM, then SIGKILL


def launch(planner: Planner, cells: Sequence[Sequence[str]]) -> list[Record]:
    """Run the cells with these overrides and return their records; failures are records too, never raised."""
    trials = [planner.trial(overrides) for overrides in cells]
    for trial in trials:
        check_sharding(trial.plan.device.value, trial.config.compute.fsdp)
    return Pool(recall(trials), planner.sweep.concurrent_trials, WarmStarter()).run()


@dataclass
class Running:
    """A trial that occupies a slot."""

    trial: Trial
    slot: Slot
    worker: Worker
    started: float
    asked_to_stop: Optional[float] = None  # when SIGTERM was sent
    asked_because: Status = Status.preempted  # or timeout


class Pool:
    """Trials waiting in their queue, trials running, free slots."""

    def __init__(self, trials: list[Trial], parallel: int, starter: Starter) -> None:
        first, self.starter = trials[0], starter
        self.trials = {trial.id: trial for trial in trials}
        self.settings: SweepConfig = first.config.sweep
        self.threads = first.plan.threads
        self.parallel, self.compute, self.device = parallel, first.config.compute, first.plan.device.value
        self.free: list[Slot] = []
        self.queue = Queue([])  # until run() has seen to what an earlier launch left
        self.running: dict[str, Running] = {}
        self.killed_before: dict[str, int] = {}
        self.stopped_by: Optional[int] = None

    def run(self) -> list[Record]:
        """Run everything that is to run; returns the records of all trials in the given order."""
        for trial in self.trials.values():
            trial.take_over()
        to_run = [trial for trial in self.trials.values() if trial.needs_running(self.settings.retry_failed)]
        await_orphans([trial.folder for trial in to_run])
        if to_run:
            with slots(self.parallel, self.compute, self.device) as self.free:
                for trial in to_run:
                    trial.start_over()
                self._run(to_run)
        if self.stopped_by is not None:
            raise SweepStopped(self.stopped_by)
        return [read_record(trial.folder) for trial in self.trials.values()]

    def _run(self, to_run: list[Trial]) -> None:
        self.queue = open_queue(self.trials.values(), to_run)
        self.starter.prepare(self.threads)
        with open_board([trial.folder for trial in self.trials.values()]) as board, self._stop_signals():
            self._fill_slots(board)
            while self.running:
                self._collect(board)
                self._fill_slots(board)
        self.queue.close()

    def _fill_slots(self, board: Board) -> None:
        while self.free and (trial := self.queue.next()) is not None:
            slot = self.free.pop(0)
            worker = self.starter.start(trial, slot.visible_devices)
            self.running[trial.id] = Running(trial, slot, worker, time.monotonic())
            board.started(trial.folder)

    def _collect(self, board: Board) -> None:
        """Wait a moment for any worker to end, settle those that did, stop those that are out of time."""
        self.starter.wait([job.worker for job in self.running.values()], POLL_SECONDS)
        board.stopping = self.stopped_by is not None
        board.refresh()
        for job in list(self.running.values()):
            if job.worker.exitcode is None:
                self._enforce_time(job)
            else:
                self._finish(job, board)

    def _finish(self, job: Running, board: Board) -> None:
        del self.running[job.trial.id]
        self.free.append(job.slot)
        assert job.worker.exitcode is not None
        record = settle(job.trial.folder, job.worker.exitcode)
        if self._was_stopped(job, record):
            self._record_stop(job, record)
        if self.stopped_by is None and self._try_again(job.trial, record):
            board.retried(job.trial.folder)
            return
        advise_on_memory(job.trial, record)
        self.queue.ended(job.trial, record)
        board.ended(job.trial.folder, record)
        drop_weights(job.trial.folder.path.parent, self.settings.keep_models)
        self._write_report(job.trial.folder.path.parent)
        if self.settings.fail_fast and record.status.is_failure:
            self.queue.stop()

    def _write_report(self, folder: Path) -> None:
        """What hinders the page must not stop trials that train; the end of the sweep writes it again, and tells."""
        with suppress(RunFolderError):
            write_report(folder)

    def _try_again(self, trial: Trial, record: Record) -> bool:
        """Put a killed trial back in the queue (bounded), and one that ran out of memory with a smaller batch."""
        again = trial if record.status is Status.killed and self._may_retry(trial) else smaller_batch(trial, record)
        if again is None:
            return False
        self.queue.again(again)
        if again is not trial:
            self._share_smaller_batch(again)
        return True

    def _may_retry(self, trial: Trial) -> bool:
        self.killed_before[trial.id] = self.killed_before.get(trial.id, 0) + 1
        return self.killed_before[trial.id] <= self.settings.retries

    def _share_smaller_batch(self, shrunk: Trial) -> None:
        """Trials of the same shape that wait would run out of memory too: they start with the smaller batch."""
        limits = Limits.of(shrunk.plan)
        self.queue.change(lambda one: limited(one, limits) if one is not shrunk and same_shape(one, shrunk) else one)

    def _enforce_time(self, job: Running) -> None:
        """Ask a trial to stop when its time is over or the sweep ends; kill one that does not within the grace."""
        limit, now = self.settings.timeout_seconds, time.monotonic()
        overdue = limit is not None and now - job.started > limit
        if (overdue or self.stopped_by is not None) and job.asked_to_stop is None:
            job.worker.terminate()
            job.asked_to_stop = now
            job.asked_because = Status.preempted if self.stopped_by is not None else Status.timeout
        if job.asked_to_stop is not None and now - job.asked_to_stop > GRACE_SECONDS:
            job.worker.kill()

    def _was_stopped(self, job: Running, record: Record) -> bool:
        """Whether it ended because of us: a second Ctrl-C kills trials that have not been asked to stop yet."""
        ours = job.asked_to_stop is not None or (self.stopped_by is not None and record.status is Status.killed)
        return ours and record.status not in {Status.completed, Status.pruned}

    def _record_stop(self, job: Running, record: Record) -> None:
        """What we stopped is not killed from outside, however it died: preempted goes on with the same command."""
        if job.asked_because is Status.timeout:
            message = f"not finished after sweep.timeout_seconds={self.settings.timeout_seconds:g}"
            record.fail(Status.timeout, Failure("timeout", message, log_tail(job.trial.folder)))
        else:
            record.stop()
        record.write(job.trial.folder)

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the running trials after a checkpoint; a second one kills them."""

        def stop(number: int, frame: Optional[FrameType]) -> None:
            self.queue.stop()
            if self.stopped_by is not None:
                for job in self.running.values():
                    job.worker.kill()
            self.stopped_by = number

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class SweepStopped(TrainingFailed):
    """The sweep was stopped by a signal; running trials have saved a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command goes on where it was", Status.preempted.value)
        self.exit_code = 128 + number


def await_orphans(folders: list[RunFolder]) -> None:
    """Trials of a launch that was killed save a checkpoint and end by themselves; until then the folder is theirs.

    Raises ``RunFolderError`` for one that does not end.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while held := [folder for folder in folders if is_held(folder.lock)]:
        if time.monotonic() > deadline:
            raise RunFolderError(f"{held[0].path} is in use: this trial is already being trained by another process")
        time.sleep(POLL_SECONDS)
