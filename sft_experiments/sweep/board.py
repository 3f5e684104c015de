"""What a running sweep shows: a live table on a terminal, one line per event otherwise."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from sft_experiments.files import json_lines
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import EVAL_LOSS, TOKENS_PER_SECOND, TRAIN_LOSS
from sft_experiments.runs.plan_file import find_plan
from sft_experiments.runs.record import Record, Status, read_record
from sft_experiments.values import format_seconds

STYLES = {
    Status.pending: "dim",
    Status.running: "yellow",
    Status.completed: "green",
    Status.preempted: "magenta",
    Status.pruned: "cyan",
}


WIDTHS = {"status": 9, "step": 9, "loss": 6, "eval": 6, "tokens/s": 8, "time": 6}  # the label gets what is left
RUNG_WIDTH = 4  # of one more column where trials wait at rungs
UNFINISHED = (Status.pending, Status.running, Status.preempted)  # the same command goes on with these
TAIL_BYTES = 4096  # enough for the last few lines of metrics.jsonl


@dataclass
class Row:
    """One trial as the board knows it."""

    folder: RunFolder
    label: str
    status: Status
    total_steps: int = 0
    latest: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    started: float = 0.0  # on the monotonic clock; 0: by another process
    rung: int | None = None  # where a pruned trial waits


class Board:
    """The state of every trial, read from its folder. Subclasses decide how it is shown."""

    def __init__(self, folders: list[RunFolder], console: Console) -> None:
        self.console = console
        self.rows = {folder.path: self._row(folder) for folder in folders}
        self.begun = time.monotonic()
        self.stopping = False  # nothing new is started, so there is no time left to tell

    def _row(self, folder: RunFolder) -> Row:
        record = read_record(folder)
        seconds, steps = seconds_of(record), planned_steps(folder)
        label = short_label(record.label) or record.trial_id
        return Row(
            folder, label, record.status, steps, latest_metrics(folder), seconds, rung=record.metrics.get("rung")
        )

    def started(self, folder: RunFolder) -> None:
        row = self.rows[folder.path]
        row.status, row.started, row.rung = Status.running, time.monotonic(), None

    def retried(self, folder: RunFolder) -> None:
        self.rows[folder.path].status = Status.pending

    def ended(self, folder: RunFolder, record: Record) -> None:
        row = self.rows[folder.path]
        row.status, row.seconds = record.status, time.monotonic() - row.started
        row.rung = read_record(folder).metrics.get("rung")
        row.latest |= latest_metrics(folder)

    def refresh(self) -> None:
        """Read what the running trials have written since."""
        for row in self.rows.values():
            if row.status is Status.running:
                row.latest |= latest_metrics(row.folder)
                row.total_steps = row.total_steps or planned_steps(row.folder)

    def count(self, *statuses: Status) -> int:
        return sum(row.status in statuses for row in self.rows.values())

    @property
    def num_ended(self) -> int:
        return len(self.rows) - self.count(*UNFINISHED)

    def remaining_seconds(self) -> float | None:
        """From the pace of the trials that this launch has trained; None before the first one, and when it stops."""
        own = [row for row in self.rows.values() if row.started]
        done = sum(row.status not in UNFINISHED for row in own)
        partial = sum(share_done(row) for row in own if row.status is Status.running)
        left = self.count(*UNFINISHED) - partial
        finished = done + partial
        return (time.monotonic() - self.begun) / finished * left if finished > 0.2 and not self.stopping else None


class PlainBoard(Board):
    """One line when a trial starts and one when it ends: for logs, pipes and CI."""

    def started(self, folder: RunFolder) -> None:
        super().started(folder)
        self.console.print(
            f"[{self.num_ended}/{len(self.rows)}] started    {self.rows[folder.path].label}",
            soft_wrap=True,
            markup=False,
        )

    def retried(self, folder: RunFolder) -> None:
        super().retried(folder)
        self.console.print(
            f"[{self.num_ended}/{len(self.rows)}] retrying   {self.rows[folder.path].label}",
            soft_wrap=True,
            markup=False,
        )

    def ended(self, folder: RunFolder, record: Record) -> None:
        super().ended(folder, record)
        row = self.rows[folder.path]
        value = record.objective if row.rung is None else row.latest.get(record.objective_metric)
        where = "" if row.rung is None else f" at rung {row.rung}"
        objective = "" if value is None else f"  {record.objective_metric} {value:.4f}{where}"
        state = f"{record.status.value:<10} {row.label}{objective}  {row.seconds:.1f} s"
        self.console.print(f"[{self.num_ended}/{len(self.rows)}] {state}", soft_wrap=True, markup=False)


class LiveBoard(Board):
    """A table that is drawn anew twice a second."""

    def table(self) -> Table:
        left = self.remaining_seconds()
        title = f"{self.num_ended} of {len(self.rows)} trials" + (
            f", about {format_seconds(left)} left" if left else ""
        )
        title += ", stopping" if self.stopping else ""
        table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False)
        table.add_column("trial", overflow="ellipsis", no_wrap=True, ratio=1)
        for header, width in WIDTHS.items():
            table.add_column(header, justify="right", no_wrap=True, min_width=width)
        rungs = any(row.rung is not None for row in self.rows.values())
        if rungs:
            table.add_column("rung", justify="right", no_wrap=True, min_width=RUNG_WIDTH)
        for row in self.rows.values():
            rung = ["" if row.rung is None else str(row.rung)] if rungs else []
            table.add_row(row.label, *cells(row), *rung, style=STYLES.get(row.status, "red"))
        return table


def cells(row: Row) -> list[str]:
    latest = row.latest
    step = f"{latest['step']:g}/{row.total_steps}" if "step" in latest and row.total_steps else ""
    seconds = time.monotonic() - row.started if row.status is Status.running and row.started else row.seconds
    return [
        row.status.value,
        step,
        f"{latest[TRAIN_LOSS]:.4f}" if latest.get(TRAIN_LOSS) is not None else "",
        f"{latest[EVAL_LOSS]:.4f}" if latest.get(EVAL_LOSS) is not None else "",
        f"{latest[TOKENS_PER_SECOND]:,.0f}" if latest.get(TOKENS_PER_SECOND) else "",
        format_seconds(seconds) if seconds else "",
    ]


def seconds_of(record: Record) -> float:
    """How long a trial took, or has taken so far when another process trains it."""
    if record.status is Status.running and record.started_at:
        return (datetime.now(UTC) - datetime.fromisoformat(record.started_at)).total_seconds()
    return record.timings.get("total", 0.0)


def short_label(label: str) -> str:
    """The two axes of every default sweep by their usual short names, so that a row fits 80 columns."""
    return label.replace("learning_rate=", "lr=").replace("effective_batch_size=", "batch=")


def share_done(row: Row) -> float:
    return min(1.0, float(row.latest.get("step", 0)) / row.total_steps) if row.total_steps else 0.0


def latest_metrics(folder: RunFolder) -> dict[str, Any]:
    """The newest value of each metric among the last lines of metrics.jsonl; a line being written is left out."""
    latest: dict[str, Any] = {}
    for event in json_lines(folder.metrics, TAIL_BYTES):
        latest |= event
    return latest


def planned_steps(folder: RunFolder) -> int:
    """All optimizer steps of a trial; 0 before its worker has counted them."""
    plan = find_plan(folder)
    return plan.steps.total_steps if plan is not None and plan.steps is not None else 0


@contextmanager
def open_board(folders: list[RunFolder]) -> Iterator[Board]:
    """The board that fits the output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield PlainBoard(folders, console)
        return
    board = LiveBoard(folders, console)
    with Live(get_renderable=board.table, console=console, refresh_per_second=2):
        yield board
