"""The register of trackers (TensorBoard, W&B, trackio, and those of the user's own), and what keeps them from harm.

Each tracker has a daemon thread and a bounded queue. One that raises is switched off; one that hangs loses what no
longer fits into its queue, and at the end it is left behind after a deadline. Each such case becomes a note for the
record. metrics.jsonl holds everything in any case.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pkgutil import resolve_name
from typing import Any

from sft_experiments.errors import ConfigError, MissingDependencyError, nearest
from sft_experiments.monitor.trackers.tracker import RunIdentity, Settings, Tracker
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import Alert, Event, Sample
from sft_experiments.schema import Config
from sft_experiments.secrets import redact, redact_text
from sft_experiments.values import flatten, plain

# What builds a tracker: called in the tracker's own thread, so that it may import its library, and take its time.
Build = Callable[[Config, RunFolder], Tracker]

# Name in logger.trackers -> what builds it, or where that is found ("module:function").
TRACKERS: dict[str, Build | str] = {
    "tensorboard": "sft_experiments.monitor.trackers.tensorboard_tracker:build",
    "wandb": "sft_experiments.monitor.trackers.wandb_tracker:build",
    "trackio": "sft_experiments.monitor.trackers.trackio_tracker:build",
}
UPSTREAM = (
    *("azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub"),
    *("dvclive", "flyte", "kubeflow", "mlflow", "neptune", "swanlab"),
)
"""Trackers that transformers writes to itself (``report_to``): they see its own names and are not isolated."""


def add(name: str, build: Build | str) -> None:
    """Put a tracker into the register. Raises ``ConfigError`` when another one has its name."""
    if TRACKERS.setdefault(name, build) != build or name in UPSTREAM:
        raise ConfigError(f"the tracker {name} is in the register already")


def build_trackers(config: Config, folder: RunFolder, identity: RunIdentity) -> "Trackers":
    """Start the trackers that ``logger.trackers`` names. Returns at once; they start in their own threads."""
    check_names(config.logger.trackers)
    named = [name for name in config.logger.trackers if name in TRACKERS]
    trackers = Trackers({name: partial(_built, name, config, folder) for name in named}, config.logger.finish_seconds)
    trackers.start(identity, flat_settings(config))
    return trackers


def _built(name: str, config: Config, folder: RunFolder) -> Tracker:
    build = TRACKERS[name]
    try:
        tracker: Tracker = (resolve_name(build) if isinstance(build, str) else build)(config, folder)
    except ImportError:
        raise MissingDependencyError(f"{name} is not installed: pip install {name}") from None
    return tracker


def check_names(names: list[str]) -> None:
    """Raise ``ConfigError`` for a tracker that nobody knows."""
    for name in names:
        known = [*TRACKERS, *UPSTREAM]
        if name not in known:
            raise ConfigError(f"logger.trackers: {name!r} is not one of {', '.join(known)}{nearest(name, known)}")


def upstream_names(names: list[str]) -> list[str]:
    """The names that go to transformers' ``report_to``."""
    return [name for name in names if name not in TRACKERS]


def flat_settings(config: Config) -> dict[str, Any]:
    """The whole config as ``{"train.learning_rate": 0.002, ...}``, without secrets."""
    return flatten(plain(redact(asdict(config))))


QUEUE_LENGTH = 4096  # events; at one event per second, more than an hour of a tracker that does not answer
ABANDON_SECONDS = 2.0


class Trackers:
    """All trackers of a run. No method blocks, except ``finish`` (at most ``finish_seconds``), and none raises."""

    def __init__(self, builders: Mapping[str, Callable[[], Tracker]], finish_seconds: float) -> None:
        self._finish_seconds = finish_seconds
        self._notes = _Notes()
        self._couriers = [_Courier(name, build, self._notes.add) for name, build in builders.items()]

    def start(self, identity: RunIdentity, settings: Settings) -> None:
        self._send("start", identity, settings)

    def log(self, event: Event) -> None:
        self._send("log", dict(event))

    def alert(self, alert: Alert) -> None:
        self._send("alert", alert)

    def samples(self, samples: list[Sample]) -> None:
        self._send("samples", samples)

    def finish(self, status: str, summary: Mapping[str, Any]) -> list[str]:
        """Close all trackers, waiting no longer than the deadline for all of them together. Returns every note."""
        deadline = time.monotonic() + self._finish_seconds
        for courier in self._couriers:
            courier.send("finish", status, dict(summary))
        for courier in self._couriers:
            courier.wait(deadline)
        return self._notes.all()

    def take_notes(self) -> list[str]:
        """The notes since the last call, for the terminal."""
        return self._notes.take()

    def _send(self, method: str, *arguments: Any) -> None:
        for courier in self._couriers:
            courier.send(method, *arguments)


class _Notes:
    """Notes from several threads; each is kept once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: list[str] = []
        self._taken = 0

    def add(self, note: str) -> None:
        with self._lock:
            if (clean := redact_text(note)) not in self._notes:
                self._notes.append(clean)

    def all(self) -> list[str]:
        with self._lock:
            return list(self._notes)

    def take(self) -> list[str]:
        with self._lock:
            new, self._taken = self._notes[self._taken :], len(self._notes)
            return new


class _Courier:
    """One tracker, its thread and its queue. The tracker is built in the thread as well."""

    def __init__(self, name: str, build: Callable[[], Tracker], note: Callable[[str], None]) -> None:
        self._name, self._build = name, build
        self._tracker: Tracker | None = None
        self._note = note
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(QUEUE_LENGTH)
        self._ended = threading.Event()  # finished or failed
        self._lost = 0
        threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True).start()

    def send(self, method: str, *arguments: Any) -> None:
        if self._ended.is_set():
            return
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            self._lost += 1

    def wait(self, deadline: float) -> None:
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            self._ended.set()
            self._note(f"{self._name} did not answer in time and was left behind; metrics.jsonl is complete")
            self._abandon()
        if self._lost:
            self._note(f"{self._name} was too slow: {self._lost} events are missing there")

    def _run(self) -> None:
        while not self._ended.is_set():
            method, arguments = self._queue.get()
            try:
                self._tracker = self._tracker or self._build()
                getattr(self._tracker, method)(*arguments)
            except BaseException as error:  # noqa: BLE001 anything, also SystemExit: a tracker may only lose its own copy
                self._fail(method, error)
                return
            self._pass_notes_on()
            if method == "finish":
                self._ended.set()

    def _fail(self, method: str, error: BaseException) -> None:
        if not self._ended.is_set():  # else it was left behind, and that was noted
            self._note(f"{self._name} stopped in {method}: {_describe(error)}; metrics.jsonl is complete")
            self._abandon()
            self._ended.set()

    def _abandon(self) -> None:
        """In a thread, since this too may hang."""
        thread = threading.Thread(target=self._let_go, daemon=True)
        thread.start()
        thread.join(ABANDON_SECONDS)
        self._pass_notes_on()

    def _let_go(self) -> None:
        with suppress(BaseException):  # the tracker is lost already, and has its note; W&B even calls sys.exit
            if self._tracker is not None:
                self._tracker.abandon()

    def _pass_notes_on(self) -> None:
        for note in self._tracker.notes if self._tracker is not None else ():
            self._note(note)


def _describe(error: BaseException) -> str:
    """Class and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
