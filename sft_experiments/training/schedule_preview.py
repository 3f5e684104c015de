"""`sft schedules`: every learning-rate schedule that conf/scheduler offers, side by side, for this run's own steps."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from sft_experiments.compose import conf_dir
from sft_experiments.composition import composed
from sft_experiments.errors import ConfigError
from sft_experiments.plan.batch import StepPlan, resolve_warmup
from sft_experiments.plan.facts import data_facts, steps_of
from sft_experiments.report.number_format import format_rate
from sft_experiments.schema import Config
from sft_experiments.show import console
from sft_experiments.training.schedule import planned_learning_rates
from sft_experiments.training.schedule_picture import write_html, write_png

BLOCKS = " ▁▂▃▄▅▆▇█"
SPARKLINE = 32  # characters
WIDE = 120  # columns of a terminal in which the table has room for them


@dataclass(frozen=True)
class Preview:
    """One schedule. ``rates[i]`` is what optimizer step i (counted from 0) uses."""

    name: str
    chosen: bool
    rates: list[float]


def schedules(arguments: list[str]) -> int:
    """`sft schedules [--steps N --warmup N --lr X] [--out DIR] [overrides]`."""
    options, overrides = _options().parse_known_args(arguments)
    previews, steps = preview(overrides, options)
    console.print(
        f"{steps.total_steps} steps, {steps.warmup_steps} of warmup, peak {format_rate(max(previews[0].rates))}"
        "   [dim](steps are counted from 0; the chosen schedule is marked *)[/dim]"
    )
    points = sample_points(steps.total_steps, steps.warmup_steps)
    console.print(table(previews, points))
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    lines = {preview.name: preview.rates for preview in previews}
    console.print(f"  page     {write_html(folder / 'schedules.html', lines, points)}")
    picture = write_png(folder / "schedules.png", lines)
    missing = "needs matplotlib: pip install 'sft-experiments[plots]'"
    console.print(f"  picture  {picture or missing}", markup=False)
    return 0


def _options() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sft schedules",
        usage="sft schedules [--steps 1000] [--warmup 100] [--lr 2e-5] [--out DIR] [key=value ...]",
        description="All learning-rate schedules side by side, for this run's own steps.",
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of the run)")
    parser.add_argument("--warmup", type=int, help="warmup steps (default: those of the run)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: the run's)")
    parser.add_argument("--out", default=".", help="folder for schedules.html and schedules.png (default: here)")
    return parser


def preview(overrides: list[str], options: Namespace) -> tuple[list[Preview], StepPlan]:
    """Every schedule for the steps of the run that the overrides describe."""
    fixed = [item for item in overrides if not item.startswith("scheduler=")]
    with composed(overrides) as composition:
        chosen = composition.trial().config
    steps = run_steps(chosen, options)
    previews = []
    for name in scheduler_options():
        with composed([*fixed, f"scheduler={name}"]) as composition:
            config = composition.trial().config
        if options.lr is not None:
            config.train.learning_rate = options.lr
        warmup = 0 if name == "constant" else steps.warmup_steps
        rates = planned_learning_rates(config, replace(steps, warmup_steps=warmup))
        previews.append(Preview(name, config.scheduler.name == chosen.scheduler.name, rates))
    return previews, steps


def run_steps(config: Config, options: Namespace) -> StepPlan:
    """Steps as typed, else those of the run. Raises ``ConfigError`` when neither is known."""
    if options.steps is not None:
        if options.steps < 1:
            raise ConfigError(f"--steps {options.steps}: must be at least 1")
        warmup = resolve_warmup(options.steps, config.scheduler.warmup_ratio, config.scheduler.warmup_steps)
        steps = StepPlan(0, options.steps, options.steps, warmup, 0)
    else:
        known = steps_of(config, data_facts(config))
        if known is None:
            raise ConfigError(
                "the number of steps is not known before the data are counted: give --steps, or run sft check"
            )
        steps = known
    if options.warmup is not None:
        steps = replace(steps, warmup_steps=resolve_warmup(steps.total_steps, None, options.warmup))
    return steps


def scheduler_options() -> list[str]:
    """The options of the scheduler group."""
    return sorted(file.stem for file in (conf_dir() / "scheduler").glob("*.yaml"))


def sample_points(total: int, warmup: int) -> list[int]:
    """Start, middle and end of warmup, the quarters, the last step: 0, 50, 100, 250, 500, 750, 999 of 1000 with 100."""
    points = {0, warmup // 2, warmup, total // 4, total // 2, 3 * total // 4, total - 1}
    return sorted(point for point in points if point < total)


def table(previews: list[Preview], points: list[int]) -> Table:
    """Learning rates at the sample points, and, where there is room for it, the shape of each schedule."""
    wide = console.width >= WIDE
    found = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    found.add_column("  step", no_wrap=True)
    for point in points:
        found.add_column(str(point), justify="right", no_wrap=True)
    if wide:
        found.add_column("shape", no_wrap=True)
    highest = max(max(preview.rates) for preview in previews)
    for item in previews:
        values = [format_rate(item.rates[point]) for point in points]
        mark = "*" if item.chosen else " "
        shape = [sparkline(item.rates, highest)] if wide else []
        found.add_row(f"{mark} {item.name}", *values, *shape, style="bold" if item.chosen else None)
    return found


def sparkline(rates: list[float], highest: float) -> str:
    """The schedule in one line of block characters."""
    picked = [rates[index * (len(rates) - 1) // (SPARKLINE - 1)] for index in range(SPARKLINE)]
    return "".join(BLOCKS[round(rate / highest * (len(BLOCKS) - 1))] if highest else BLOCKS[0] for rate in picked)
