"""`sft schedules`: every learning-rate schedule that conf/scheduler offers, side by side, for this run's own steps."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Optional

from rich.table import Table

from sft_experiments.commands import Command
from sft_experiments.config.hydra import composed
from sft_experiments.errors import ConfigError
from sft_experiments.files import write_text_atomically
from sft_experiments.launch.trial import plan_run
from sft_experiments.plan.arithmetic import resolve_warmup
from sft_experiments.plan.data_facts import data_facts, steps_of
from sft_experiments.plan.machine import installed
from sft_experiments.runs.plan_file import StepPlan
from sft_experiments.schema import Config
from sft_experiments.terminal import console
from sft_experiments.training.arguments import planned_learning_rates
from sft_experiments.values import format_rate

BLOCKS = " ▁▂▃▄▅▆▇█"
SPARKLINE = 32  # characters
WIDE = 120  # columns of a terminal in which the schedule_table has room for them


@dataclass(frozen=True)
class Preview:
    """One schedule. ``rates[i]`` is what optimizer step i (counted from 0) uses."""

    name: str
    chosen: bool
    rates: list[float]


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of the run)")
    parser.add_argument("--warmup", type=int, help="warmup steps (default: those of the run)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: the run's)")
    parser.add_argument("--out", default=".", help="folder for schedules.html and schedules.png (default: here)")


def _schedules(parsed: Namespace) -> int:
    """The table on the terminal, a page, and a picture where matplotlib is installed."""
    previews, steps = preview(parsed.settings, parsed)
    console.print(
        f"{steps.total_steps} steps, {steps.warmup_steps} of warmup, peak {format_rate(max(previews[0].rates))}"
        "   [dim](steps are counted from 0; the chosen schedule is marked *)[/dim]"
    )
    points = sample_points(steps.total_steps, steps.warmup_steps)
    console.print(schedule_table(previews, points))
    folder = Path(parsed.out)
    folder.mkdir(parents=True, exist_ok=True)
    lines = {preview.name: preview.rates for preview in previews}
    console.print(f"  page     {write_html(folder / 'schedules.html', lines, points)}")
    picture = write_png(folder / "schedules.png", lines)
    missing = "needs matplotlib: pip install 'sft-experiments[plots]'"
    console.print(f"  picture  {picture or missing}", markup=False)
    return 0


def preview(settings: list[str], options: Namespace) -> tuple[list[Preview], StepPlan]:
    """Every schedule, those of the user's folders included, for the steps of the run that the settings describe."""
    fixed = [item for item in settings if not item.startswith("scheduler=")]
    with composed(settings) as composer:
        chosen = plan_run(composer).config
        chosen_option = composer.master.hydra.runtime.choices.scheduler
        names = composer.options("scheduler")
    steps = run_steps(chosen, options)
    previews = []
    for name in names:
        with composed([*fixed, f"scheduler={name}"]) as composer:
            config = plan_run(composer).config
        if options.lr is not None:
            config.train.learning_rate = options.lr
        warmup = 0 if config.scheduler.name == "constant" else steps.warmup_steps
        rates = planned_learning_rates(config, replace(steps, warmup_steps=warmup))
        previews.append(Preview(name, name == chosen_option, rates))
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


def sample_points(total: int, warmup: int) -> list[int]:
    """Start, middle and end of warmup, the quarters, the last step: 0, 50, 100, 250, 500, 750, 999 of 1000 with 100."""
    points = {0, warmup // 2, warmup, total // 4, total // 2, 3 * total // 4, total - 1}
    return sorted(point for point in points if point < total)


def schedule_table(previews: list[Preview], points: list[int]) -> Table:
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


COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
STYLE = "body{font:15px system-ui;margin:2em}td,th{padding:.2em .8em;text-align:right}th:first-child{text-align:left}"
WIDTH, HEIGHT, MARGIN = 900, 420, 60
MOST_POINTS = 500  # of a line; more cannot be seen
Lines = dict[str, list[float]]  # name -> learning rate of each step


def write_html(file: Path, lines: Lines, points: list[int]) -> Path:
    """One page with the curves (SVG) and the table at the sample points."""
    head = "".join(f"<th>{point}</th>" for point in points)
    rows = "".join(
        f'<tr><th style="color:{colour}">{escape(name)}</th>'
        + "".join(f"<td>{format_rate(rates[point])}</td>" for point in points)
        + "</tr>"
        for (name, rates), colour in zip(lines.items(), COLOURS, strict=False)
    )
    write_text_atomically(
        file,
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Learning-rate schedules</title>'
        f"<style>{STYLE}</style><h1>Learning-rate schedules</h1>{_svg(lines)}"
        f"<table><tr><th>step</th>{head}</tr>{rows}</table></html>\n",
    )
    return file


def _svg(lines: Lines) -> str:
    highest = max(max(rates) for rates in lines.values()) or 1.0
    steps = max(len(rates) for rates in lines.values())
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="learning rate by step">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(share * (steps - 1), share * highest, steps, highest)
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - 10}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end" font-size="11">{format_rate(share * highest)}</text>'
        )
        step = round(share * (steps - 1))
        parts.append(f'<text x="{x}" y="{HEIGHT - MARGIN // 2}" text-anchor="middle" font-size="11">{step}</text>')
    for (name, rates), colour in zip(lines.items(), COLOURS, strict=False):
        places = [_place(step, rates[step], steps, highest) for step in _thinned(len(rates))]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2">')
        parts.append(f"<title>{escape(name)}</title></polyline>")
    return "".join([*parts, "</svg>"])


def _place(step: float, rate: float, steps: int, highest: float) -> tuple[float, float]:
    """Coordinates in the picture."""
    x = MARGIN + step / max(1, steps - 1) * (WIDTH - MARGIN - 10)
    y = HEIGHT - MARGIN - rate / highest * (HEIGHT - MARGIN - 20)
    return round(x, 1), round(y, 1)


def _thinned(count: int) -> list[int]:
    """Indices of at most ``MOST_POINTS`` steps, first and last included."""
    if count <= MOST_POINTS:
        return list(range(count))
    return sorted({round(index * (count - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)})


def write_png(file: Path, lines: Lines) -> Optional[Path]:
    """The curves as a PNG; None without matplotlib (the extra ``plots``)."""
    if not installed("matplotlib"):
        return None
    from matplotlib.figure import Figure  # slow: matplotlib, 1 s

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, rates), colour in zip(lines.items(), COLOURS, strict=False):
        axes.plot(rates, label=name, color=colour)
    axes.set(xlabel="optimizer step", ylabel="learning rate")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    return file


COMMANDS = {
    "schedules": Command(
        _schedules,
        _add_arguments,
        usage="sft schedules [--steps 1000] [--warmup 100] [--lr 2e-5] [--out DIR] [key=value ...]",
        takes_settings=True,
    )
}
