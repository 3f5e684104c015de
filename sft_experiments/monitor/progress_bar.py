"""The progress bar on a terminal (rich). Everything printed meanwhile goes above it."""

from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from sft_experiments.monitor.display import describe_alert, describe_event
from sft_experiments.monitor.events import Alert, Event


class BarDisplay:
    """``train ━━━━╸ 40/100 0:12 eta 0:18 loss 1.23 lr 2.0e-03``, with a line above for evaluations and alerts."""

    def __init__(self, total_steps: int, stream: IO[str]) -> None:
        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("train", total=total_steps, status="")
        self._progress.start()

    def step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def event(self, event: Event) -> None:
        if "train/loss" in event:
            self._progress.update(self._task, status=describe_event(event))
        else:
            self._print(f"step {int(event['step'])}  {describe_event(event)}", "cyan")

    def alert(self, alert: Alert) -> None:
        self._print(describe_alert(alert), "bold red" if alert.policy == "stop" else "yellow")

    def note(self, text: str) -> None:
        self._print(f"note: {text}", "dim")

    def close(self) -> None:
        self._progress.stop()

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style))
