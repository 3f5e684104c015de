import math
from random import Random

import pytest

from sft_experiments.advice.optimum import Optimum, fit_optimum

RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]


def measured(optimum: float, noise: float, seeds: int, random: Random, rates: list[float] = RATES) -> Optimum | None:
    points = [
        (rate, 0.3 + 0.5 * math.log10(rate / optimum) ** 2 + random.gauss(0, noise))
        for rate in rates
        for _ in range(seeds)
    ]
    means = {rate: sum(loss for other, loss in points if other == rate) for rate in rates}
    return fit_optimum(points, min(means, key=lambda rate: means[rate]))


def test_without_noise_the_parabola_finds_its_own_optimum() -> None:
    optimum = measured(2.7e-3, 1e-6, 1, Random(0))
    assert optimum is not None
    assert optimum.estimate == pytest.approx(2.7e-3, rel=1e-3)


def test_the_interval_holds_the_true_optimum_in_95_of_100_sweeps() -> None:
    random = Random(3)
    trials = [(true := 10 ** random.uniform(-3, -2.4), measured(true, 0.01, 3, random)) for _ in range(300)]
    claimed = [(true, optimum) for true, optimum in trials if optimum]
    covered = sum(optimum.low <= true <= optimum.high for true, optimum in claimed)
    assert len(claimed) > 200
    assert covered / len(claimed) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(claimed))


@pytest.mark.parametrize("rates", [RATES[:2], RATES[:3]])
def test_too_few_learning_rates_claim_nothing(rates: list[float]) -> None:
    assert measured(1e-3, 0.01, 1, Random(0), rates) is None


def test_a_line_without_a_bend_claims_nothing() -> None:
    wiggle = dict(zip(RATES, [1e-3, -1e-3, 2e-3, 0, -1e-3], strict=True))
    points = [(rate, 0.3 - 0.1 * math.log10(rate) + wiggle[rate]) for rate in RATES]
    assert fit_optimum(points, 8e-3) is None


def test_noise_larger_than_the_bend_claims_nothing() -> None:
    random = Random(4)
    found = [measured(2e-3, 1.0, 2, random) for _ in range(100)]
    assert sum(optimum is not None for optimum in found) <= 10


def test_known_noise_widens_an_interval_that_is_narrow_by_luck() -> None:
    points = [(rate, 0.3 + 0.5 * math.log10(rate / 2e-3) ** 2) for rate in RATES for _ in range(2)]
    lucky, honest = fit_optimum(points, 2e-3), fit_optimum(points, 2e-3, noise=0.01)
    assert lucky is not None
    assert honest is not None
    assert honest.high / honest.low > lucky.high / lucky.low
