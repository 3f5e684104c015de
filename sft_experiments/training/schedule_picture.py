"""Pictures of learning-rate schedules: a page that needs nothing, and a PNG where matplotlib is installed."""

from html import escape
from pathlib import Path
from typing import Optional

from sft_experiments.plan.device import installed
from sft_experiments.report.number_format import format_rate
from sft_experiments.run.files import write_text_atomically

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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, rates), colour in zip(lines.items(), COLOURS, strict=False):
        axes.plot(rates, label=name, color=colour)
    axes.set(xlabel="optimizer step", ylabel="learning rate")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    return file
