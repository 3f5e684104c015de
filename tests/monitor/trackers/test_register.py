"""No tracker can stop, slow or change a run: each breaks here in every method and every way."""

import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from sft_experiments.errors import ConfigError
from sft_experiments.monitor.trackers import register
from sft_experiments.monitor.trackers.register import Trackers, build_trackers, check_names, upstream_names
from sft_experiments.monitor.trackers.tracker import RunIdentity, Tracker
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import Alert, Event, Sample
from tests.monitor.conftest import run_config


def running(*trackers: Tracker, finish_seconds: float) -> Trackers:
    """Each under a name of its own."""
    names = [f"{tracker.name} {number}" if number else tracker.name for number, tracker in enumerate(trackers)]
    built = dict(zip(names, trackers, strict=True))
    return Trackers({name: lambda name=name: built[name] for name in names}, finish_seconds)  # type: ignore[misc]


METHODS = ("start", "log", "alert", "samples", "finish")
IDENTITY = RunIdentity("0123456789ab", "grid", "lr=1")
EVENT: Event = {"step": 1, "tokens": 10, "epoch": 0.1, "time": 1.0, "train/loss": 2.0}


class ScriptedTracker:
    """Keeps what it is told, and misbehaves in one method."""

    name = "scripted"

    def __init__(self, method: str = "", fault: Any = None) -> None:
        self.notes: list[str] = []
        self.told: list[str] = []
        self.abandoned = threading.Event()
        self._method, self._fault = method, fault

    def _act(self, method: str) -> None:
        if method == self._method:
            self._fault()
        self.told.append(method)

    def start(self, identity: RunIdentity, settings: Mapping[str, Any]) -> None:
        self._act("start")

    def log(self, event: Event) -> None:
        self._act("log")

    def alert(self, alert: Alert) -> None:
        self._act("alert")

    def samples(self, samples: list[Sample]) -> None:
        self._act("samples")

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._act("finish")

    def abandon(self) -> None:
        self.abandoned.set()


def tell_everything(trackers: Trackers) -> list[str]:
    trackers.start(IDENTITY, {})
    trackers.log(EVENT)
    trackers.alert(Alert("loss_spike", "warn", 1, "jumped"))
    trackers.samples([Sample(1, 0, [], "4")])
    return trackers.finish("completed", {})


def raise_error() -> None:
    raise OSError("the service is down\nsecond line")


def raise_exit() -> None:
    raise SystemExit(1)


def hang() -> None:
    threading.Event().wait()


def test_a_tracker_is_told_everything_in_order() -> None:
    tracker = ScriptedTracker()
    assert tell_everything(running(tracker, finish_seconds=5)) == []
    assert tracker.told == list(METHODS)


@pytest.mark.parametrize("fault", [raise_error, raise_exit])
@pytest.mark.parametrize("method", METHODS)
def test_a_tracker_that_raises_is_switched_off_with_a_note_and_others_go_on(method: str, fault: Any) -> None:
    broken, sound = ScriptedTracker(method, fault), ScriptedTracker()
    (note,) = tell_everything(running(broken, sound, finish_seconds=5))
    assert note.startswith(f"scripted stopped in {method}: ")
    assert "second line" not in note
    assert broken.told == list(METHODS[: METHODS.index(method)])
    assert broken.abandoned.is_set()
    assert sound.told == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_tracker_that_hangs_is_left_behind_after_the_deadline(method: str) -> None:
    hanging, sound = ScriptedTracker(method, hang), ScriptedTracker()
    started = time.monotonic()
    (note,) = tell_everything(running(hanging, sound, finish_seconds=0.3))
    assert time.monotonic() - started < 5
    assert "did not answer in time" in note
    assert hanging.abandoned.is_set()
    assert sound.told == list(METHODS)


def test_a_tracker_that_hangs_never_blocks_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "QUEUE_LENGTH", 50)
    trackers = running(ScriptedTracker("log", hang), finish_seconds=0.1)
    started = time.monotonic()
    for _ in range(10_000):
        trackers.log(EVENT)
    assert time.monotonic() - started < 5
    notes = trackers.finish("completed", {})
    assert any("events are missing there" in note for note in notes)


def test_events_are_copies(folder: RunFolder) -> None:
    seen: list[Event] = []
    tracker = ScriptedTracker()
    tracker.log = seen.append  # type: ignore[method-assign, assignment]
    trackers = running(tracker, finish_seconds=5)
    event = dict(EVENT)
    trackers.log(event)
    event["train/loss"] = -1.0
    trackers.finish("completed", {})
    assert seen == [EVENT]


def test_notes_are_told_once_and_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-7f3a9b1c")

    def leak() -> None:
        raise RuntimeError("key canary-7f3a9b1c was refused")

    trackers = running(ScriptedTracker("start", leak), finish_seconds=5)
    trackers.start(IDENTITY, {})
    (note,) = trackers.finish("failed", {})
    assert "canary" not in note
    assert trackers.take_notes() == [note]
    assert trackers.take_notes() == []


def test_a_tracker_that_is_not_installed_becomes_a_note(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder, identity: RunIdentity
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "trackio", None)
    for name in ("wandb_tracker", "trackio_tracker"):  # another test may have imported them
        monkeypatch.delitem(sys.modules, f"sft_experiments.monitor.trackers.{name}", raising=False)
    trackers = build_trackers(run_config("wandb", "trackio"), folder, identity)
    trackers.log(EVENT)
    notes = trackers.finish("completed", {})
    assert sorted(note.split(";")[0] for note in notes) == [
        "trackio stopped in start: MissingDependencyError: trackio is not installed: pip install trackio",
        "wandb stopped in start: MissingDependencyError: wandb is not installed: pip install wandb",
    ]


def test_a_tracker_that_cannot_write_becomes_a_note(folder: RunFolder, identity: RunIdentity) -> None:
    folder.tensorboard.write_text("a file is in the way")
    (folder.wandb / "wandb").write_text("a file is in the way")
    trackers = build_trackers(run_config("tensorboard", "wandb"), folder, identity)
    trackers.log(EVENT)
    notes = sorted(trackers.finish("completed", {}))
    assert notes[0].startswith("tensorboard stopped in start: ")
    assert notes[1].startswith("wandb stopped in start: NotADirectoryError")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_becomes_a_note(folder: RunFolder, identity: RunIdentity) -> None:
    folder.path.chmod(0o555)
    trackers = build_trackers(run_config("tensorboard"), folder, identity)
    (note,) = trackers.finish("completed", {})
    folder.path.chmod(0o755)
    assert note.startswith("tensorboard stopped in start: PermissionError")


def test_trackers_leave_random_state_alone(folder: RunFolder, identity: RunIdentity) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[index]

    before = state()
    trackers = build_trackers(run_config("tensorboard", "wandb"), folder, identity)
    for step in range(20):
        trackers.log({**EVENT, "step": step})
        trackers.samples([Sample(step, 0, [], "4")])
    trackers.alert(Alert("loss_spike", "warn", 1, "jumped"))
    trackers.finish("completed", {"eval/loss": 1.0})
    assert state() == before


def test_unknown_trackers_are_refused_and_upstream_ones_passed_through() -> None:
    with pytest.raises(ConfigError, match=r"'tensorbord' is not one of .*did you mean 'tensorboard'"):
        check_names(["tensorbord"])
    check_names(["wandb", "mlflow"])
    assert upstream_names(["wandb", "mlflow", "tensorboard"]) == ["mlflow"]


def test_every_tracker_that_transformers_knows_is_known() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from sft_experiments.monitor.trackers.register import TRACKERS, UPSTREAM

    assert set(INTEGRATION_TO_CALLBACK) <= set(TRACKERS) | set(UPSTREAM)
