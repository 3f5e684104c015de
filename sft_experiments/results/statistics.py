"""Pooled variance and Student's t, as comparing runs needs them, without a numerical library."""

import math
from collections.abc import Sequence
from functools import lru_cache


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """The unbiased sample variance (n - 1 in the denominator) of two or more values."""
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)


def pooled_variance(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Variance within groups and its degrees of freedom, from all groups of two or more; None when there are none."""
    repeated = [group for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in repeated)
    if not degrees:
        return None
    return math.fsum(variance(group) * (len(group) - 1) for group in repeated) / degrees, degrees


def student_probability(t: float, degrees: int) -> float:
    """P(T <= t) for Student's t distribution."""
    tail = 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))
    return 1 - tail if t > 0 else tail


@lru_cache(maxsize=256)
def student_quantile(probability: float, degrees: int) -> float:
    """The t with P(T <= t) = ``probability``, to about 1e-9, for probabilities between 0.5 and 1."""
    low, high = 0.0, 1.0
    while student_probability(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    fraction, c, d = 1.0, 1.0, 0.0
    for index in range(300):
        half = index // 2
        if index == 0:
            term = 1.0
        elif index % 2 == 0:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        d = 1 / _not_zero(1 + term * d)
        c = _not_zero(1 + term / c)
        fraction *= c * d
        if abs(1 - c * d) < 1e-12:
            break
    return front * (fraction - 1)


def _not_zero(value: float) -> float:
    return value if abs(value) > 1e-30 else 1e-30
