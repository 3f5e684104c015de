"""record.json: what a trial was, and what became of it. The ledger of a sweep is the set of its records."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Optional

from sft_experiments.errors import RunFolderError
from sft_experiments.files import read_json, write_json_atomically
from sft_experiments.runs.folder import RunFolder

SCHEMA_VERSION = 1
OWN_SCHEDULE = "schedule "  # before the name of one: a fingerprint that only runs with it have


class Status(str, Enum):
    """The states of a trial."""

    pending = "pending"  # planned, not started
    running = "running"
    completed = "completed"
    failed = "failed"  # an error was raised, or the process exited
    killed = "killed"  # the process died from a signal that we did not send
    oom = "oom"  # out of memory where no smaller batch helps, or none is left
    diverged = "diverged"  # NaN or Inf in loss or gradient
    timeout = "timeout"
    preempted = "preempted"  # stopped on request (Ctrl-C, SIGTERM) after saving a checkpoint
    pruned = "pruned"  # stopped early because others were better

    @property
    def is_failure(self) -> bool:
        return self in {Status.failed, Status.killed, Status.oom, Status.diverged, Status.timeout}

    @property
    def is_final(self) -> bool:
        """Nothing is left to do for this trial unless the user asks for a retry."""
        return self.is_failure or self is Status.completed


_FAILURES = frozenset(status for status in Status if status.is_failure)
# What each status can become. A launch that starts a trial once more begins a new, pending record.
_NEXT: dict[Status, frozenset[Status]] = {
    # Pruned from pending or preempted: taken up by a sweep whose rule then left it waiting at the rung it had passed.
    Status.pending: _FAILURES | {Status.running, Status.preempted, Status.pruned},
    Status.running: frozenset(Status) - {Status.pending},
    Status.preempted: _FAILURES | {Status.running, Status.preempted, Status.pruned},
    Status.pruned: _FAILURES | {Status.running, Status.pruned},  # a score that is not a number is found at its rung
    # A worker that we stopped may have died in some other way; and one record is taken up again by hand.
    **dict.fromkeys(_FAILURES, _FAILURES | {Status.running, Status.preempted}),
    Status.completed: frozenset({Status.running}),  # a folder trained again by hand: python -m ...training.worker DIR
}


class Phase(str, Enum):
    """What a worker is doing. It decides what helps when memory runs out."""

    start = "start-up"
    data = "data"
    loading = "loading the model"
    training = "training"
    evaluation = "evaluation"
    generation = "generation"
    saving = "saving a checkpoint"


PHASE_NOTE = "phase: "


@contextmanager
def during(phase: Phase) -> Iterator[None]:
    """Note the phase on an error that leaves the block; the traceback shows it."""
    try:
        yield
    except Exception as error:  # whatever it is, it goes on, with the note
        error.add_note(PHASE_NOTE + phase.value)
        raise


def noted_phase(error: BaseException) -> Optional[Phase]:
    """The phase in which an error was raised: of nested ones, the innermost, which was noted first."""
    notes: list[str] = getattr(error, "__notes__", [])
    return next((Phase(note.removeprefix(PHASE_NOTE)) for note in notes if note.startswith(PHASE_NOTE)), None)


@dataclass
class Failure:
    """Why a trial did not complete."""

    kind: str  # exception class, signal name or exit code
    message: str  # several lines when data have several faults
    log_tail: list[str] = field(default_factory=list)  # the last lines of log.txt
    phase: Optional[str] = None  # what the worker was doing, in the words of Phase; None: unknown


@dataclass
class Record:
    """The content of record.json. Times are ISO 8601 in UTC, durations seconds."""

    trial_id: str
    name: str  # of the run or sweep
    label: str  # what differs from its neighbours, e.g. "learning_rate=2e-3 effective_batch_size=32"
    status: Status = Status.pending
    schema_version: int = SCHEMA_VERSION
    created_at: Optional[str] = None
    started_at: Optional[str] = None
    finished_at: Optional[str] = None
    attempts: int = 0
    overrides: list[str] = field(default_factory=list)  # as typed, without the sweep axes
    axes: dict[str, Any] = field(default_factory=dict)  # sweep axis -> this trial's value
    sweep: Optional[str] = None  # the sweep's folder name
    command: Optional[str] = None  # reproduces this run from the shell, in the folder where it was launched
    config_dirs: list[str] = field(default_factory=list)  # that --config-dir named
    launched_in: Optional[str] = None  # the folder from which relative paths of the settings count
    config: dict[str, Any] = field(default_factory=dict)  # resolved, nested
    objective: Optional[float] = None  # None unless completed and finite
    objective_metric: str = "eval/loss"
    objective_direction: str = "minimize"
    metrics: dict[str, Any] = field(default_factory=dict)  # final values, and best/* of the restored checkpoint
    timings: dict[str, float] = field(default_factory=dict)  # phase -> seconds
    environment: dict[str, Any] = field(default_factory=dict)  # versions, git, device, threads
    fingerprints: dict[str, str] = field(default_factory=dict)  # train/validation data, model, tokenizer, template
    alerts: list[dict[str, Any]] = field(default_factory=list)  # health events: rule, step, message, count
    notes: list[str] = field(default_factory=list)  # e.g. a tracker that died, a batch that was halved
    failure: Optional[Failure] = None

    # ---- what becomes of the trial: the only ways in which its status changes

    def start(self, environment: dict[str, Any]) -> None:
        """A worker takes it up, for the first time or once more."""
        self._become(Status.running)
        self.started_at, self.finished_at = utc_now(), None
        self.attempts += 1
        self.failure, self.objective, self.environment = None, None, environment

    def complete(self, objective: float) -> None:
        """It is trained, measured and saved."""
        self._end(Status.completed)
        self.objective = objective

    def wait_at_rung(self) -> None:
        """It has been trained as far as its sweep wants for now; a checkpoint waits."""
        self._end(Status.pruned)

    def stop(self) -> None:
        """It was stopped on request: the same command goes on with it."""
        self._end(Status.preempted)

    def fail(self, status: Status, failure: Failure) -> None:
        """It ended without a trained model. ``status``: the class of the failure."""
        assert status.is_failure, status
        self._end(status)
        self.failure = failure

    def _end(self, status: Status) -> None:
        self._become(status)
        self.objective, self.failure, self.finished_at = None, None, utc_now()

    def _become(self, status: Status) -> None:
        assert status in _NEXT[self.status], f"{self.trial_id}: {self.status.value} cannot become {status.value}"
        self.status = status

    @property
    def outcome(self) -> str:
        """The status for trackers: a run that ends while it runs has failed."""
        ended = Status.failed if self.status is Status.running else self.status
        return str(ended.value)

    def write(self, folder: RunFolder) -> None:
        """Write the record whole or not at all."""
        write_json_atomically(folder.record, asdict(self) | {"status": self.status.value})


def read_record(folder: RunFolder) -> Record:
    """The record of a run folder.

    Raises ``RunFolderError`` naming the file when it is missing, broken, or written by a newer version.
    """
    content = read_json(folder.record)
    if not isinstance(content, dict) or "trial_id" not in content:
        raise RunFolderError(f"{folder.record} is not a record: it has no trial_id")
    if content.get("schema_version", 0) > SCHEMA_VERSION:
        raise RunFolderError(
            f"{folder.record} has schema version {content['schema_version']}; this program reads up to {SCHEMA_VERSION}"
        )
    known = {field.name for field in fields(Record)}
    values = {key: value for key, value in content.items() if key in known}
    values["status"] = Status(values["status"])
    if values.get("failure"):
        values["failure"] = Failure(**values["failure"])
    return Record(**values)


def utc_now() -> str:
    """The time as records hold it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
