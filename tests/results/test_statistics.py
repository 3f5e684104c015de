import pytest

from sft_experiments.results.statistics import pooled_variance, student_probability, student_quantile, variance


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 6, 2.4469), (0.95, 10, 1.8125), (0.995, 30, 2.7500)],
)
def test_student_quantiles_are_those_of_the_printed_tables(probability: float, degrees: int, quantile: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(quantile, abs=1e-4)


def test_the_student_distribution_is_symmetric_around_one_half() -> None:
    assert student_probability(0.0, 5) == pytest.approx(0.5)
    assert student_probability(1.3, 5) + student_probability(-1.3, 5) == pytest.approx(1.0)


def test_pooled_variance_weighs_groups_by_their_degrees_of_freedom() -> None:
    pooled = pooled_variance([[1.0, 3.0], [5.0, 5.0, 5.0], [9.0]])
    assert pooled is not None
    assert pooled[0] == pytest.approx((variance([1.0, 3.0]) * 1 + 0.0 * 2) / 3)
    assert pooled[1] == 3


def test_single_values_say_nothing_about_the_noise() -> None:
    assert pooled_variance([[1.0], [2.0]]) is None
