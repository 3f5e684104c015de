"""What a person sees while a run trains: a progress bar on a terminal, plain lines elsewhere, or only the alerts."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sft_experiments.runs.events import Alert, Event
from sft_experiments.runs.metrics import TOKENS_PER_SECOND, TRAIN_LOSS, Shown, shown_in
from sft_experiments.schema import TerminalMode


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
