"""Where between the tried learning rates the best one lies: a quadratic fit over log10 learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sft_experiments.results.statistics import student_quantile

NEIGHBOURS = 2  # grid values on each side of the best: a parabola describes the loss near its minimum only


@dataclass(frozen=True)
class Optimum:
    """The estimated optimum and its 95% interval, as learning rates."""

    estimate: float
    low: float
    high: float
    num_points: int


def fit_optimum(points: Sequence[tuple[float, float]], best: float, noise: float | None = None) -> Optimum | None:
    """Fit loss = a + b x + c x^2, x = log10(learning rate), to (learning rate, loss) pairs around ``best``.

    The interval is Fieller's: all x whose slope b + 2 c x cannot be told from zero at 5%. It is finite only when the
    bend is significant, so four points on a straight line, or three points, claim nothing: None. Also None when
    the interval reaches further beyond the tried values than their own spacing. ``noise`` is the standard deviation
    between seeds; the residual's is used when it is larger, because then the parabola itself does not fit.
    """
    import numpy  # slow: numpy, 0.2 s

    rates = sorted({rate for rate, _ in points if rate > 0})
    if best not in rates or len(rates) < 3:
        return None
    middle = rates.index(best)
    window = rates[max(middle - NEIGHBOURS, 0) : middle + NEIGHBOURS + 1]
    chosen = [(math.log10(rate), loss) for rate, loss in points if window[0] <= rate <= window[-1]]
    degrees = len(chosen) - 3
    if len(window) < 3 or degrees < 1:
        return None
    centre = math.log10(best)
    x = numpy.array([point[0] - centre for point in chosen])
    y = numpy.array([point[1] for point in chosen])
    design = numpy.stack([numpy.ones_like(x), x, x * x], axis=1)
    a, b, c = numpy.linalg.lstsq(design, y, rcond=None)[0].tolist()
    residual = y - design @ numpy.array([a, b, c])
    scale = max(float(residual @ residual) / degrees, (noise or 0.0) ** 2)
    covariance = (numpy.linalg.inv(design.T @ design) * scale).tolist()
    interval = _fieller(b, c, covariance, student_quantile(0.975, degrees))
    spacing = (math.log10(window[-1]) - math.log10(window[0])) / (len(window) - 1)
    if c <= 0 or interval is None or interval[0] < x.min() - spacing or interval[1] > x.max() + spacing:
        return None
    estimate, low, high = (10 ** (centre + value) for value in (-b / (2 * c), *interval))
    return Optimum(estimate, low, high, len(chosen))


def _fieller(b: float, c: float, covariance: list[list[float]], quantile: float) -> tuple[float, float] | None:
    """All x with (b + 2cx)^2 <= quantile^2 Var(b + 2cx), when that is an interval."""
    t2 = quantile * quantile
    square = 4 * (c * c - t2 * covariance[2][2])
    linear = 4 * (b * c - t2 * covariance[1][2])
    constant = b * b - t2 * covariance[1][1]
    if square <= 0:
        return None
    root = math.sqrt(max(linear * linear - 4 * square * constant, 0.0))
    return (-linear - root) / (2 * square), (-linear + root) / (2 * square)
