"""The progress bar on a terminal (rich). What anyone prints meanwhile appears above it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sft_experiments.monitor.display import Display, describe_alert, describe_event
from sft_experiments.monitor.events import Alert, Event


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
        if "train/loss" in event:
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
