"""The best configuration's neighbours along one axis, and the next value beyond the tried ones."""

import math
from dataclasses import dataclass
from typing import Any

from sft_experiments.results.collect import Run
from sft_experiments.results.rank import Cell, Comparison
from sft_experiments.results.settings import identity
from sft_experiments.runs.record import Status


@dataclass(frozen=True)
class Line:
    """Configurations that differ in one numeric setting only, by its rising value."""

    key: str
    values: list[float]  # of ranked cells
    cells: list[Cell]
    unranked: list[tuple[float, Run]]

    @property
    def name(self) -> str:
        return self.key.rsplit(".", 1)[-1]

    @property
    def stopped(self) -> list[float]:
        """Values that early stopping has found to be worse."""
        return [value for value, run in self.unranked if run.record.status is Status.pruned]


def line_through_best(comparison: Comparison, key: str) -> Line:
    """Cells that share every shown setting with the best one, except ``key``; empty when ``key`` does not vary."""
    best = comparison.cells[0]
    if key not in comparison.keys or not _is_number(best.values.get(key)):
        return Line(key, [], [], [])
    others = [other for other in comparison.keys if other != key]

    def on_line(values: dict[str, Any]) -> bool:
        same = all(identity(values.get(other)) == identity(best.values.get(other)) for other in others)
        return same and _is_number(values.get(key))

    cells = sorted((cell for cell in comparison.cells if on_line(cell.values)), key=lambda cell: cell.values[key])
    ranked = {identity(cell.values[key]) for cell in cells}
    unranked = [
        (run.values[key], run)
        for run in comparison.unranked
        if on_line(run.values) and identity(run.values[key]) not in ranked
    ]
    return Line(key, [cell.values[key] for cell in cells], cells, unranked)


def beyond(values: list[float], up: bool, integer: bool) -> float | None:
    """The next value outside a rising list of positive numbers, at the spacing of its end; None where there is none.

    Snapped to 1, 2, 3 or 5 times a power of ten when that is near; batch sizes and other counts stay whole.
    """
    edge, inner = (values[-1], values[-2]) if up else (values[0], values[1])
    if edge <= 0 or inner <= 0:
        return None
    target = edge * edge / inner
    if integer:
        whole = round(target)
        return whole if whole >= 1 and (whole > edge) == up and whole != edge else None
    decade = 10.0 ** math.floor(math.log10(target))
    nice = min((decade * digit for digit in (1, 2, 3, 5, 10)), key=lambda value: abs(math.log(value / target)))
    outside = nice > edge * 1.3 if up else nice < edge / 1.3
    return float(f"{nice if outside else target:.2g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
