"""The terminal's view of a plan: the cells of a sweep, or one run in detail."""

from collections import Counter
from typing import Any, Optional

from rich.table import Table
from rich.text import Text

from sft_experiments.commands.train import show_plan, show_what_was_there, values_table
from sft_experiments.launch.trial import Trial
from sft_experiments.plan.data_facts import DataFacts
from sft_experiments.plan.forecast import Forecast
from sft_experiments.plan.memory import MemoryEstimate
from sft_experiments.sweep.ledger import Sweep
from sft_experiments.sweep.outlook import Outlook
from sft_experiments.sweep.sweep_view import show_search_plan
from sft_experiments.terminal import console, show_warnings
from sft_experiments.values import format_seconds, format_value, gib


def show_outlook(found: Outlook) -> None:
    """One run in detail, or a row for each cell; then data, memory, time and what is unusual."""
    some = found.examples or found
    first, ahead = some.trials[0], some.forecasts[0]
    if found.sweep is None:
        show_plan(first)
        show_what_was_there(first)
        _show_steps(ahead)
    else:
        _show_sweep(found, found.sweep)
        for label, choice in (("device", first.plan.device), ("precision", first.plan.precision)):
            console.print(f"  {label:<10} {choice.value} [dim]({choice.reason})[/dim]")
        fixed = {key: entry for key, entry in first.plan.values.items() if key not in found.sweep.axes}
        console.print(values_table(fixed))
        show_warnings(list(dict.fromkeys(warning for trial in some.trials for warning in trial.plan.warnings)))
    _show_data(some.facts[0])
    _show_memory(some)
    _show_time(found)


def _show_sweep(found: Outlook, sweep: Sweep) -> None:
    """Its cells; of a search, what it may choose from and those that it has chosen so far."""
    if found.search is not None:
        show_search_plan(sweep, found.search.space, found.search.num_trials)
        states = Counter(found.states())
        counted = ": " * bool(states) + ", ".join(f"{number} {state}" for state, number in states.items())
        console.print(f"  so far     {len(found.trials)} of {found.search.num_trials} points proposed{counted}")
    else:
        console.print(
            f"[bold]{sweep.name}[/bold]  {len(found.trials)} trials, {found.concurrent_trials} at a time"
            f"  [dim]{sweep.folder}[/dim]"
        )
    if found.trials:
        _show_cells(found, sweep.axes)


def _show_steps(ahead: Forecast) -> None:
    steps = ahead.steps
    if steps is not None:
        tokens = f", {ahead.tokens / max(1, steps.total_steps):,.0f} tokens per step" if ahead.tokens else ""
        details = f"{steps.steps_per_epoch} per epoch, {steps.warmup_steps} of warmup{tokens}"
        console.print(f"  steps      {steps.total_steps} [dim]({details})[/dim]")


# Columns of the cells that a narrow terminal goes without, the least needed first.
SPARED = ("warmup", "tokens/step", "memory", "batch")
GAP = 2  # characters between columns


def _show_cells(found: Outlook, axes: list[str]) -> None:
    """A row for each cell: what differs, its batch, steps, memory, time and state."""
    cells = zip(found.trials, found.forecasts, found.states(), strict=True)
    rows = [_cell(trial, ahead, state, axes) for trial, ahead, state in cells]
    widths = {name: max(len(line) for row in rows for line in (*name.split("\n"), row[name])) for name in rows[0]}
    hidden: list[str] = []
    while len(hidden) < len(SPARED) and sum(widths.values()) + GAP * (len(widths) - 1) > console.width:
        hidden.append(SPARED[len(hidden)])
        del widths[hidden[-1]]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for number, name in enumerate(widths):
        table.add_column(name, justify="right" if number else "left", no_wrap=True, min_width=widths[name])
    for row in rows:
        style = {"completed": "green", "new": "dim"}.get(row["state"], "yellow")
        table.add_row(*(Text(row[name], style=style if name == "state" else "") for name in widths))
    console.print(table)
    if hidden:
        console.print(f"  [dim]a wider terminal also shows: {', '.join(hidden)}[/dim]")


def _cell(trial: Trial, ahead: Forecast, state: str, axes: list[str]) -> dict[str, str]:
    """Column -> text."""
    batch, steps = trial.plan.batch, ahead.steps
    split = f"{batch.per_device_train_batch_size} x {batch.gradient_accumulation_steps} x {batch.num_devices}"
    return {
        "  " + " x\n  ".join(axis.rsplit(".", 1)[-1] for axis in axes): "  "
        + " ".join(format_value(trial.record.axes.get(axis, "")) for axis in axes),
        "batch": f"{split} = {batch.effective_batch_size}",
        "steps": str(steps.total_steps) if steps else "?",
        "warmup": str(steps.warmup_steps) if steps else "?",
        "tokens/step": f"{ahead.tokens / steps.total_steps:,.0f}" if ahead.tokens and steps else "?",
        "memory": gib(ahead.memory.total) if ahead.memory else "?",
        "time": format_seconds(ahead.duration.seconds) if ahead.duration else "?",
        "state": state,
    }


def _show_data(facts: Optional[DataFacts]) -> None:
    if facts is None:
        console.print("  data       not counted yet: sft check prepares them and reports lengths and packing")
    elif facts.tokens is None:
        console.print(
            f"  data       {facts.sequences:,} rows [dim]({facts.source}; tokens are counted by sft check)[/dim]"
        )
    else:
        share = f"{facts.supervised_share or 0:.0%} supervised, longest sequence {facts.longest}"
        packs = f" in {facts.sequences:,} packs" if facts.sequences != facts.documents else ""
        console.print(
            f"  data       {facts.documents:,} rows{packs}, {facts.tokens:,} tokens an epoch [dim]({share})[/dim]"
        )


def _show_memory(found: Outlook) -> None:
    """The largest estimate of all cells with its parts, and what would make it fit."""
    estimated = [item for item in found.forecasts if item.memory]
    if not estimated:
        console.print("  memory     unknown: the model's config is not on this machine and its size is not given")
        return
    worst = max(estimated, key=lambda item: item.memory.total if item.memory else 0)
    assert worst.memory is not None
    colour = {"fits": "green", "tight": "yellow", "will not fit": "red"}.get(worst.memory_verdict or "", "dim")
    text = (
        f"[{colour}]{worst.memory_verdict}[/{colour}]" if worst.memory_verdict else "[dim]device memory unknown[/dim]"
    )
    console.print(
        f"  memory     {gib(worst.memory.total)} per device, estimated: {text} [dim]({_parts(worst.memory)})[/dim]"
    )
    for line in worst.advice:
        console.print(f"             with {line}")


def _parts(memory: MemoryEstimate) -> str:
    parts = {
        "weights": memory.weights + memory.weight_casts,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer_state,
        "activations": memory.activations,
        "logits": memory.logits,
    }
    return ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)


def _show_time(found: Outlook) -> None:
    seconds, some = found.seconds_to_run(), found.examples or found
    bases = [item.duration.basis for item in some.forecasts if item.duration]
    if (seconds is None or not bases) and not all(fact and fact.is_exact for fact in some.facts):
        console.print("  time       unknown until the tokens are counted: sft check counts them")
    elif seconds is None or not bases:
        console.print("  time       unknown: neither a like run nor this device's speed and the model's size is known")
    elif not seconds:
        console.print("  time       nothing is left to run")
    else:
        wall = (
            f", {format_seconds(seconds / found.concurrent_trials)} on the clock" if found.concurrent_trials > 1 else ""
        )
        amount, device_seconds = found.price(), found.device_seconds()
        price = f", price {amount:,.2f}" if amount is not None else ""
        hours = f"{(device_seconds or seconds) / 3600:.2g} device hours"
        console.print(
            f"  time       about {format_seconds(seconds)} of training ({hours}{wall}{price}) [dim]({bases[0]})[/dim]"
        )
        average, most = found.seconds_of_examples()
        if found.left and average is not None and most is not None:
            console.print(
                f"             {format_seconds(average)} a trial on average, {format_seconds(most)} at most"
                f" [dim](of {len(some.trials)} points drawn at random)[/dim]"
            )
    disk = max((item.disk_bytes or 0 for item in some.forecasts), default=0)
    if disk:
        together = disk * min(found.concurrent_trials, len(some.trials))
        console.print(f"  disk       up to {gib(together)} while training")


def as_dict(found: Outlook) -> dict[str, Any]:
    """The content of ``sft plan --json``."""
    seconds = found.seconds_to_run()
    cells = [
        {
            "trial_id": trial.id,
            "folder": str(trial.folder.path),
            "axes": trial.record.axes,
            "state": state,
            **trial.plan.as_json(),
            "data": None if fact is None else vars(fact),
            **item.as_dict(),
        }
        for trial, item, fact, state in zip(found.trials, found.forecasts, found.facts, found.states(), strict=True)
    ]
    return {
        "sweep": str(found.sweep.folder) if found.sweep else None,
        "search": search_as_dict(found) if found.search else None,
        "concurrent_trials": found.concurrent_trials,
        "device_seconds": found.device_seconds(),
        "wall_seconds": None if seconds is None else seconds / found.concurrent_trials,
        "price": found.price(),
        "cells": cells,
    }


def search_as_dict(found: Outlook) -> dict[str, Any]:
    """What is known of a Bayesian search whose cells are not."""
    assert found.search is not None
    average, most = found.seconds_of_examples()
    return {
        "space": {key: str(dimension) for key, dimension in found.search.space.dimensions.items()},
        "num_trials": found.search.num_trials,
        "left": found.left,
        "trial_seconds": {"average": average, "most": most},
    }
