"""What the terminal shows before and after a run or sweep. Plain text when the output is not a terminal."""

import shlex
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sft_experiments.launch.trial import Trial
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Record, Status
from sft_experiments.terminal import console, show_notes, show_warnings
from sft_experiments.text import format_score, format_value


def show_plan(trial: Trial) -> None:
    """The plan of one run: where it goes, what was derived, where each value comes from, what is unusual."""
    batch = trial.plan.batch
    console.print(f"[bold]{trial.config.name}[/bold]  trial {trial.id}  [dim]{trial.folder.path}[/dim]")
    console.print(
        f"  batch      {batch.per_device_train_batch_size} per device x {batch.gradient_accumulation_steps}"
        f" accumulation x {batch.num_devices} device = [bold]{batch.effective_batch_size}[/bold]"
    )
    console.print(f"  device     {trial.plan.device.value} [dim]({trial.plan.device.reason})[/dim]")
    console.print(f"  precision  {trial.plan.precision.value} [dim]({trial.plan.precision.reason})[/dim]")
    console.print(values_table(trial.plan.values))
    show_warnings(trial.plan.warnings)


def show_what_was_there(trial: Trial) -> None:
    """That nothing is trained again, when the same trial is complete."""
    earlier = trial.recorded()
    if earlier is not None and earlier.status is Status.completed and not trial.config.rerun:
        console.print(f"  completed at {earlier.finished_at}: nothing is trained (rerun=true trains it again)")


def values_table(values: dict[str, dict[str, Any]]) -> Table:
    """Each dial with its value and its origin."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for key, entry in values.items():
        table.add_row(f"  {key}", Text(format_value(entry["value"]), style="bold"), Text(entry["origin"], style="dim"))
    return table


def show_outcome(folder: RunFolder, record: Record) -> None:
    """The result of one run and where to look next."""
    best = record.metrics.get("best/step")
    console.print(
        f"[bold green]completed[/bold green]  {record.objective_metric} [bold]{format_score(record.objective)}[/bold]"
        f" (step {best} of {record.metrics.get('total_steps')}, {record.timings.get('total', 0):.0f} s)"
    )
    console.print(f"  model      {folder.model}")
    show_notes(record.notes)
    show_where_to_look(folder.path, record.config)


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
