"""The monitoring of one run: events go to the metrics file, the trackers, the health rules and the terminal."""

import faulthandler
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sft_experiments.errors import TrainingFailed
from sft_experiments.monitor.display import build_display
from sft_experiments.monitor.health import Health
from sft_experiments.monitor.measure import Measure
from sft_experiments.monitor.rules import RunFacts
from sft_experiments.monitor.trackers.register import build_trackers, check_names
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.runs.events import Alert, Event, JsonLinesFile, Sample, append_samples
from sft_experiments.runs.folder import RunFolder
from sft_experiments.schema import Config
from sft_experiments.secrets import redact_text


class Monitor:
    """Everything that watches a run; one per run, on rank 0. ``finish`` is called whatever happens.

    ``stopped`` is the alert whose policy asks the trainer to end, or None. Raises ``ConfigError`` for unknown rules
    or trackers, ``RunFolderError`` when the metrics file cannot be written; trackers never raise.
    """

    def __init__(self, config: Config, folder: RunFolder, identity: RunIdentity, facts: RunFacts) -> None:
        self.stopped: Alert | None = None
        check_names(config.logger.trackers)
        self._health = Health(config.monitor.rules, facts)
        self._metrics = JsonLinesFile(folder.metrics, identity.resumed_step)
        self._samples = JsonLinesFile(folder.samples, identity.resumed_step)
        self._measure = Measure(facts)
        self._replay([_with_nan(line) for line in self._metrics.kept])
        self._display = build_display(config.monitor.terminal, facts.total_steps, folder.log)
        self._watch = StallWatch(config.monitor.stall_seconds, self._stalled, folder.path / "stacks.txt")
        self._trackers = build_trackers(config, folder, identity)
        self._step = max(0, identity.resumed_step)
        self._training = True
        self._finished = False

    # ---- what the trainer tells

    def train_begin(self, model: Any, tokens: float) -> None:
        """Training starts, or goes on after ``tokens``."""
        self._measure.train_begin(model, tokens)
        self._watch.start()

    def step_end(self, step: int) -> None:
        self._step = step
        self._measure.speed.step_ended(time.monotonic())
        self._display.step(step)
        self._watch.beat()

    def pause_end(self) -> None:
        """The trainer has evaluated, saved or logged: neither training time nor a stall."""
        self._measure.speed.pause_ended(time.monotonic())
        self._watch.beat()

    def alive(self) -> None:
        """One batch of an evaluation is done."""
        self._watch.beat()

    def log(self, step: int, epoch: float, logs: Mapping[str, Any]) -> None:
        """What the trainer logs, under its own names; see names.py."""
        if event := self._measure.event(step, epoch, logs):
            self._metrics.append(event)
            self._trackers.log(event)
            self._display.event(event)
            for alert in self._health.observe(event):
                self._tell(alert)
            self._show_notes()

    def samples(self, samples: list[Sample]) -> None:
        """Generations of one evaluation; those of an evaluation after training are not kept."""
        if samples and self._training:
            append_samples(self._samples, samples)
            self._trackers.samples(samples)

    def report(self, rule: str, step: int, message: str) -> None:
        """A sign that is not in the events, e.g. ``not_finite`` from the trainer's guard before an optimizer step."""
        if alert := self._health.report(rule, step, redact_text(message)):
            self._tell(alert)

    def train_end(self) -> None:
        """The terminal is free again."""
        self._training = False
        self._watch.stop()
        self._display.close()

    # ---- what the worker asks

    def alerts(self) -> list[dict[str, Any]]:
        """For the record: one entry per rule that fired."""
        return self._health.records()

    def summary(self) -> Event:
        """What the monitor adds to the run's final metrics: its mean speed."""
        return self._measure.speed.of_the_run()

    def finish(self, status: str, summary: Mapping[str, Any]) -> list[str]:
        """Close everything, in ``logger.finish_seconds`` at most. Returns the notes for the record.

        Belongs into a ``finally``: an error on its way out tells how the run ended. A second call does nothing.
        """
        if self._finished:
            return []
        self._finished = True
        status = self._outcome(status, sys.exception())
        self.train_end()
        self._metrics.close()
        self._samples.close()
        notes = self._trackers.finish(status, summary)
        self._show_notes()
        return notes

    # ---- inside

    def _replay(self, events: list[Event]) -> None:
        """Bring rules and counters to where the resumed run was. What was told then is not told again."""
        self._measure.replay(events)
        for event in events:
            self._health.observe(event)

    def _tell(self, alert: Alert) -> None:
        self._display.alert(alert)
        self._trackers.alert(alert)
        if alert.policy == "stop" and self.stopped is None:
            self.stopped = alert

    def _outcome(self, status: str, error: BaseException | None) -> str:
        """The class of a failure; a divergence that the trainer stopped before any event becomes an alert."""
        if not isinstance(error, TrainingFailed):
            return status
        if error.status == "diverged" and self.stopped is None:
            self.report("not_finite", self._step + 1, str(error))
        return error.status

    def _stalled(self, seconds: float) -> None:
        self.report("stalled", self._step, f"no step for {seconds:.0f} s; all stacks are in stacks.txt")

    def _show_notes(self) -> None:
        for note in self._trackers.take_notes():
            self._display.note(note)


def _with_nan(line: dict[str, Any]) -> Event:
    return {name: math.nan if value is None else value for name, value in line.items()}


class StallWatch:
    """Calls ``on_stall(silent seconds)`` once per silence: when no ``beat`` came for ``seconds``. None: never."""

    def __init__(self, seconds: float | None, on_stall: Callable[[float], None], stacks: Path) -> None:
        self._seconds = seconds
        self._on_stall = on_stall
        self._stacks = stacks
        self._last_beat = time.monotonic()
        self._told = False
        self._stop = threading.Event()

    def start(self) -> None:
        self.beat()
        if self._seconds is not None:
            threading.Thread(target=self._watch, args=(self._seconds,), name="stall-watch", daemon=True).start()

    def beat(self) -> None:
        """Something moved: an optimizer step, an evaluation, a saved checkpoint."""
        self._last_beat = time.monotonic()
        self._told = False

    def stop(self) -> None:
        self._stop.set()

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(min(1.0, seconds / 4)):
            silent = time.monotonic() - self._last_beat
            if silent > seconds and not self._told:
                self._told = True
                self._write_stacks(silent)
                self._on_stall(silent)

    def _write_stacks(self, silent: float) -> None:
        with self._stacks.open("a", encoding="utf-8") as file:
            file.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')}: no step for {silent:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
