"""What the terminal shows before and after a sweep. Plain text when the output is not a terminal."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_experiments.launch.trial import Trial
from sft_experiments.runs.record import Status, read_record
from sft_experiments.sweep.ledger import Sweep
from sft_experiments.sweep.space import Space
from sft_experiments.terminal import console, show_notes, show_warnings
from sft_experiments.values import format_value


def show_sweep_plan(sweep: Sweep, trials: list[Trial]) -> None:
    """The grid before it runs: its axes, its cells' batch splits, how many are already done."""
    first = trials[0]
    console.print(
        f"[bold]{sweep.name}[/bold]  {len(trials)} trials, {sweep.concurrent_trials} at a time"
        f"  [dim]{sweep.folder}[/dim]"
    )
    for axis in sweep.axes:
        values = dict.fromkeys(format_value(trial.record.axes[axis]) for trial in trials if axis in trial.record.axes)
        console.print(Text(f"  {axis}: {', '.join(values)}"))
    console.print(batch_table(trials))
    console.print(f"  device     {first.plan.device.value} [dim]({first.plan.device.reason})[/dim]")
    console.print(f"  precision  {first.plan.precision.value} [dim]({first.plan.precision.reason})[/dim]")
    done = sum((earlier := trial.recorded()) is not None and earlier.status is Status.completed for trial in trials)
    if done:
        others = sum(trial.elsewhere is not None for trial in trials)
        where = f", {others} of them elsewhere in {first.config.output_dir}" if others else ""
        console.print(f"  {done} of {len(trials)} trials are completed already{where}, and are not run again")
    show_warnings(list(dict.fromkeys(warning for trial in trials for warning in trial.plan.warnings)))


def show_search_plan(sweep: Sweep, space: Space, num_trials: int) -> None:
    """A search before it runs: what it may choose from, and how many points it will try in all."""
    console.print(
        f"[bold]{sweep.name}[/bold]  Bayesian search, {num_trials} trials in all, {sweep.concurrent_trials} at a time"
        f"  [dim]{sweep.folder}[/dim]"
    )
    for key, dimension in space.dimensions.items():
        console.print(Text(f"  {key}: {dimension}"))


def show_points(first: int, last: int, num_trials: int) -> None:
    """Which points of a search are trained next, counted from 1."""
    console.print(f"  point{'s' * (last > first)} {first}{f' to {last}' * (last > first)} of {num_trials}", style="dim")


def batch_table(trials: list[Trial]) -> Table:
    """How each effective batch of a sweep is made."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for header in ("  effective batch", "per device", "accumulation", "devices"):
        table.add_column(header, justify="right")
    splits = dict.fromkeys(trial.plan.batch for trial in trials)
    for split in sorted(splits, key=lambda split: split.effective_batch_size):
        micro, groups = split.per_device_train_batch_size, split.gradient_accumulation_steps
        numbers = (split.effective_batch_size, micro, groups, split.num_devices)
        table.add_row(*map(str, numbers))
    return table


def show_sweep_outcome(sweep: Sweep, trials: list[Trial], notes: list[str]) -> int:
    """The ranked table, every failure, and where to look next. Returns how many trials did not complete."""
    from sft_experiments.report.on_terminal import print_ranked_table  # slow: the page's modules, after the sweep
    from sft_experiments.report.publish import REPORT_FILE  # slow: the page's modules, after the sweep

    records = [read_record(trial.folder) for trial in trials]
    failed = [
        (trial, record)
        for trial, record in zip(trials, records, strict=True)
        if record.status not in {Status.completed, Status.pruned}
    ]
    console.print()
    print_ranked_table([sweep.folder], Console(highlight=False))
    for trial, record in failed:
        reason = " ".join(record.failure.message.split()) if record.failure else "not finished"
        console.print(Text(f"{record.status.value}: {record.label or trial.id}: {reason}", style="red"))
        console.print(Text(f"  log: {trial.folder.log}", style="dim"))
    show_notes(notes)
    if (sweep.folder / REPORT_FILE).is_file():
        console.print(f"  report     {sweep.folder / REPORT_FILE}")
    show_where_to_look(sweep.folder, trials[0].record.config)
    return len(failed)


def show_where_to_look(folder: Path, config: dict[str, Any]) -> None:
    """Commands to paste: compare, TensorBoard, W&B."""
    quoted = shlex.quote(str(folder))
    console.print(f"  compare    sft compare {quoted}")
    trackers = config["logger"]["trackers"]
    if "tensorboard" in trackers:
        console.print(f"  curves     tensorboard --logdir {quoted}")
    offline = sorted(folder.rglob("wandb/offline-run-*"))
    if "wandb" in trackers and offline:
        depths = sorted({len(run.relative_to(folder).parts) - 2 for run in offline})
        places = " ".join(quoted + "/*" * depth + "/wandb/offline-run-*" for depth in depths)
        runs = "run" if len(offline) == 1 else "runs"
        console.print(f"  W&B        wandb sync {places}    [dim]({len(offline)} offline {runs}; needs a key)[/dim]")
