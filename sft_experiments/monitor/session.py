"""The monitoring of one run: events go to the metrics file, the trackers, the health rules and the terminal."""

import faulthandler
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sft_experiments.errors import TrainingFailed
from sft_experiments.monitor.health import Health
from sft_experiments.monitor.measure import Measure
from sft_experiments.monitor.rules import RunFacts
from sft_experiments.monitor.trackers.register import build_trackers, check_names
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import (
    TOKENS_PER_SECOND,
    TRAIN_LOSS,
    Alert,
    Event,
    JsonLinesFile,
    Sample,
    Shown,
    append_samples,
    shown_in,
)
from sft_experiments.schema import Config, TerminalMode
from sft_experiments.secrets import redact_text


class Display(Protocol):
    def step(self, step: int) -> None:
        """An optimizer step was done."""

    def event(self, event: Event) -> None:
        """Training or evaluation was measured."""

    def alert(self, alert: Alert) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def build_display(mode: TerminalMode, total_steps: int, log: Path) -> Display:
    """On a terminal a bar, and lines in the run's log; else lines to stdout, which the worker copies to the log."""
    if mode is TerminalMode.auto and sys.stdout.isatty():
        return BarDisplay(total_steps, LineDisplay(total_steps, log.open("a", encoding="utf-8")))
    return LineDisplay(total_steps, sys.stdout, quiet=mode is TerminalMode.quiet)


class LineDisplay:
    """One line per event, each in a single write, so that processes that share a stream do not mix their lines."""

    def __init__(self, total_steps: int, stream: IO[str], quiet: bool = False) -> None:
        self._total = total_steps
        self._stream = stream
        self._quiet = quiet

    def step(self, step: int) -> None:
        """Lines come with events."""

    def event(self, event: Event) -> None:
        if not self._quiet:
            self._write(f"step {int(event['step'])}/{self._total}  {describe_event(event)}")

    def alert(self, alert: Alert) -> None:
        self._write(describe_alert(alert))

    def note(self, text: str) -> None:
        if not self._quiet:
            self._write(f"note: {text}")

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def describe_event(event: Event) -> str:
    """``loss 1.234  lr 2e-3  norm 0.81  12.3k tokens/s`` or ``eval loss 1.250  gap +0.016``."""
    parts = []
    for metric in shown_in(Shown.line):
        if metric.name in event:
            value = metric.text(event[metric.name])
            parts.append(f"{value} {metric.label}" if metric.name == TOKENS_PER_SECOND else f"{metric.label} {value}")
    return "  ".join(parts)


def describe_alert(alert: Alert) -> str:
    again = f" (seen {alert.count} times)" if alert.count > 1 else ""
    verb = "STOP" if alert.policy == "stop" else "WARNING"
    return f"{verb} {alert.rule} at step {alert.last_step}: {alert.message}{again}"


class BarDisplay:
    """``train ━━━━╸ 40/100 0:12 eta 0:18 loss 1.23 lr 2.0e-03``, with a line above for evaluations and alerts.

    The bar is drawn on the terminal only; ``log`` gets everything as lines.
    """

    def __init__(self, total_steps: int, log: Display, terminal: IO[str] | None = None) -> None:
        self._log = log
        self._console = Console(file=terminal or sys.__stdout__)
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("train", total=total_steps, status="")
        self._open = ExitStack()
        self._open.enter_context(self._progress)
        self._open.enter_context(_prints_above(self._console))

    def step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def event(self, event: Event) -> None:
        self._log.event(event)
        if TRAIN_LOSS in event:
            self._progress.update(self._task, status=describe_event(event))
        else:
            self._print(f"step {int(event['step'])}  {describe_event(event)}", "cyan")

    def alert(self, alert: Alert) -> None:
        self._log.alert(alert)
        self._print(describe_alert(alert), "bold red" if alert.policy == "stop" else "yellow")

    def note(self, text: str) -> None:
        self._log.note(text)
        self._print(f"note: {text}", "dim")

    def close(self) -> None:
        self._open.close()
        self._log.close()

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def _prints_above(console: Console) -> Iterator[None]:
    """Send what others print through the console, which moves the bar out of the way.

    A stream that copies to a log keeps doing so: only its terminal side (``stream``) is replaced.
    """
    restore = []
    for name in ("stdout", "stderr"):
        outer = getattr(sys, name)
        holder, attribute = (outer, "stream") if hasattr(outer, "stream") else (sys, name)
        inner = getattr(holder, attribute)
        if inner.isatty():
            setattr(holder, attribute, FileProxy(console, inner))
            restore.append((holder, attribute, inner))
    try:
        yield
    finally:
        for holder, attribute, inner in restore:
            getattr(holder, attribute).flush()
            setattr(holder, attribute, inner)


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
