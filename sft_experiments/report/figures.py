"""The heat map and the profile as figures of the plotting library: plain dictionaries, coloured by the page's theme."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from sft_experiments.advice.optimum import Optimum
from sft_experiments.results.collect import Run
from sft_experiments.results.rank import Cell, Comparison
from sft_experiments.results.rows import setting_names
from sft_experiments.results.settings import identity, sort_key
from sft_experiments.values import format_score, format_value

LEARNING_RATE, BATCH_SIZE = "train.learning_rate", "train.effective_batch_size"
MOST_GRID_VALUES = 14  # more values per axis, or a sparser grid, are points instead of cells
Figure = dict[str, Any]


def map_axes(comparison: Comparison) -> tuple[str, str] | None:
    """The two settings of the heat map: learning rate and batch size where they vary; None with fewer than two."""
    preferred = [key for key in (LEARNING_RATE, BATCH_SIZE) if key in comparison.keys]
    axes = preferred + [key for key in comparison.keys if key not in preferred]
    return (axes[0], axes[1]) if len(axes) > 1 else None


def heat_map(comparison: Comparison) -> Figure | None:
    """The objective over two settings, the best of the other settings in each place."""
    axes = map_axes(comparison)
    if axes is None or not comparison.cells:
        return None
    x_key, y_key = axes
    places: dict[tuple[str, str], Cell] = {}
    for cell in comparison.cells:  # in rank order, so the first one is the best of its place
        places.setdefault((identity(cell.values.get(x_key)), identity(cell.values.get(y_key))), cell)
    xs, ys = _distinct(comparison.runs, x_key), _distinct(comparison.runs, y_key)
    is_grid = max(len(xs), len(ys)) <= MOST_GRID_VALUES and 2 * len(places) >= len(xs) * len(ys)
    failed = _failed_places(comparison, x_key, y_key, set(places))
    gaps = {place: _gap(comparison, cell) for place, cell in places.items()}
    limit = _color_limit(list(gaps.values()))
    best = next(iter(places.values()))
    values = [_cells_trace(comparison, xs, ys, places, gaps)] if is_grid else [_points_trace(comparison, places, axes)]
    layout: Figure = {"xaxis": _axis(comparison, x_key, xs), "yaxis": _axis(comparison, y_key, ys)}
    if is_grid:
        layout["shapes"] = _outlines(places, xs, ys, axes, best)
    return {
        "data": [*values, _failures_trace(failed, "markers+text" if is_grid else "markers")],
        "layout": layout,
        "limit": limit,
        "metric": comparison.metric,
        "is_grid": is_grid,
    }


def profile(comparison: Comparison, optimum: Optimum | None) -> Figure | None:
    """The objective against the first numeric setting, one line per value of the second, the best of the others."""
    axes = map_axes(comparison)
    key = axes[0] if axes else next(iter(comparison.keys), None)
    if key is None or not comparison.cells:
        return None
    line_key = axes[1] if axes else None
    lines: dict[str, dict[str, Cell]] = {}
    for cell in comparison.cells:
        name = format_value(cell.values.get(line_key)) if line_key else comparison.metric
        lines.setdefault(name, {}).setdefault(identity(cell.values.get(key)), cell)
    order = [format_value(value) for value in _distinct(comparison.runs, line_key)] if line_key else [comparison.metric]
    names = setting_names(comparison)
    traces = [_profile_trace(lines[name], name, key, index) for index, name in enumerate(order) if name in lines]
    values = [cell.mean for cell in comparison.cells]
    logarithmic = min(values) > 0 and max(values) > 4 * min(values)
    return {
        "data": traces,
        "layout": {
            "xaxis": _axis(comparison, key, _distinct(comparison.runs, key)),
            "yaxis": {"title": {"text": comparison.metric}, "type": "log" if logarithmic else "linear"},
            "legend": {"title": {"text": names[line_key].replace("_", " ") if line_key else ""}},
        },
        "optimum": optimum and [optimum.estimate, optimum.low, optimum.high],
        "num_colors": len(order),
    }


def _profile_trace(cells: dict[str, Cell], name: str, key: str, color: int) -> Figure:
    ordered = sorted(cells.values(), key=lambda cell: sort_key(cell.values.get(key)))
    spreads = [cell.spread for cell in ordered]
    trace: Figure = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(name),
        "x": [_coordinate(cell.values.get(key)) for cell in ordered],
        "y": [cell.mean for cell in ordered],
        "color_class": color,
        "text": [format_score(cell.mean, cell.spread) + f" (n={len(cell.runs)})" for cell in ordered],
        "hovertemplate": "%{x}: %{text}<extra>%{fullData.name}</extra>",
    }
    if any(spread is not None for spread in spreads):
        trace["error_y"] = {"type": "data", "array": [spread or 0 for spread in spreads], "thickness": 1, "width": 3}
    return trace


def _cells_trace(
    comparison: Comparison,
    xs: Sequence[Any],
    ys: Sequence[Any],
    places: dict[tuple[str, str], Cell],
    gaps: dict[tuple[str, str], float],
) -> Figure:
    rows = [[places.get((identity(x), identity(y))) for x in xs] for y in ys]
    names = setting_names(comparison)
    return {
        "type": "heatmap",
        "x": [_coordinate(x) for x in xs],
        "y": [_coordinate(y) for y in ys],
        "z": [[gaps.get((identity(x), identity(y))) for x in xs] for y in ys],
        "text": [[_cell_text(cell) for cell in row] for row in rows],
        "customdata": [[_hover(cell, comparison, names) for cell in row] for row in rows],
        "texttemplate": "%{text}",
        "hovertemplate": "%{customdata}<extra></extra>",
        "xgap": 2,
        "ygap": 2,
    }


def _points_trace(comparison: Comparison, places: dict[tuple[str, str], Cell], axes: tuple[str, str]) -> Figure:
    """For search that is no grid: one marker per configuration, the better ones drawn last, on top."""
    names = setting_names(comparison)
    cells = list(places.values())[::-1]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [_coordinate(cell.values.get(axes[0])) for cell in cells],
        "y": [_coordinate(cell.values.get(axes[1])) for cell in cells],
        "gap": [_gap(comparison, cell) for cell in cells],
        "customdata": [_hover(cell, comparison, names) for cell in cells],
        "hovertemplate": "%{customdata}<extra></extra>",
        "best_index": len(cells) - 1,
    }


def _failures_trace(failed: list[tuple[Any, Any, str]], mode: str) -> Figure:
    return {
        "type": "scatter",
        "mode": mode,
        "role": "failures",
        "x": [_coordinate(x) for x, _, _ in failed],
        "y": [_coordinate(y) for _, y, _ in failed],
        "text": [status for _, _, status in failed],
        "textposition": "bottom center",
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
    }


def _failed_places(
    comparison: Comparison, x_key: str, y_key: str, ranked: set[tuple[str, str]]
) -> list[tuple[Any, Any, str]]:
    """Places where nothing completed, with what happened there."""
    found: dict[tuple[str, str], tuple[Any, Any, str]] = {}
    for run in comparison.unranked:
        x, y = run.values.get(x_key), run.values.get(y_key)
        place = identity(x), identity(y)
        if place not in ranked:
            found.setdefault(place, (x, y, run.record.status.value))
    return list(found.values())


def _outlines(
    places: dict[tuple[str, str], Cell], xs: Sequence[Any], ys: Sequence[Any], axes: tuple[str, str], best: Cell
) -> list[Figure]:
    """A solid frame around the best cell, dashed ones around those within noise of it."""
    x_edges, y_edges = _edges(xs), _edges(ys)
    shapes = []
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            cell = places.get((identity(x), identity(y)))
            if cell is best or (cell is not None and cell.within_noise):
                corners = {"x0": x_edges[i], "x1": x_edges[i + 1], "y0": y_edges[j], "y1": y_edges[j + 1]}
                shapes.append({"type": "rect", "role": "best" if cell is best else "noise"} | corners)
    return sorted(shapes, key=lambda shape: shape["role"] == "best")  # the best frame on top


def _edges(values: Sequence[Any]) -> list[float]:
    """Cell borders: halfway between neighbours, on the axis' own scale. Categories sit at 0, 1, 2, ..."""
    if not _is_logarithmic(values):
        return [index - 0.5 for index in range(len(values) + 1)]
    logs = [math.log10(value) for value in values]
    first, last = (logs[1] - logs[0], logs[-1] - logs[-2]) if len(logs) > 1 else (math.log10(4), math.log10(4))
    middles = [(low + high) / 2 for low, high in pairwise(logs)]
    return [10**border for border in [logs[0] - first / 2, *middles, logs[-1] + last / 2]]


def _axis(comparison: Comparison, key: str, values: Sequence[Any]) -> Figure:
    title = {"title": {"text": setting_names(comparison)[key].replace("_", " ")}}
    if not _is_logarithmic(values):
        return title | {"type": "category", "categoryarray": [_coordinate(value) for value in values]}
    shown = values if len(values) <= MOST_GRID_VALUES else []
    ticks = {"tickvals": list(shown), "ticktext": [plain(format_value(value)) for value in shown]} if shown else {}
    edges = _edges(values)
    return title | {"type": "log", "range": [math.log10(edges[0]), math.log10(edges[-1])]} | ticks


def _is_logarithmic(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values)


def _distinct(runs: Sequence[Run], key: str) -> list[Any]:
    values = {identity(run.values.get(key)): run.values.get(key) for run in runs}
    return sorted(values.values(), key=sort_key)


def _coordinate(value: Any) -> Any:
    """Numbers stay numbers for a log axis; anything else is a category's text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return value if is_number else plain(format_value(value))


def _gap(comparison: Comparison, cell: Cell) -> float:
    return comparison.loss(cell) - comparison.loss(comparison.cells[0])


def _color_limit(gaps: Sequence[float]) -> float:
    """Where the colour scale ends: one very bad cell must not make all others look alike."""
    positive = [gap for gap in gaps if gap > 0]
    return min(max(positive), 4 * median(positive)) if positive else 1.0


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    spread = f"<br>± {cell.spread:.4f}" if cell.spread is not None else ""
    mark = "★ " if cell.rank == 1 else "≈ " if cell.within_noise else ""
    return mark + format_score(cell.mean) + spread


def _hover(cell: Cell | None, comparison: Comparison, names: dict[str, str]) -> str:
    """Escaped by hand: the plotting library reads a small subset of HTML in its labels."""
    if cell is None:
        return ""
    settings = [f"{names[key]}: {format_value(cell.values.get(key))}" for key in comparison.keys]
    lines = [f"{comparison.metric}: {format_score(cell.mean, cell.spread)} (n={len(cell.runs)}, rank {cell.rank})"]
    return "<br>".join(plain(line) for line in [*lines, *settings])


def plain(text: str) -> str:
    """A text in which the plotting library finds no markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
