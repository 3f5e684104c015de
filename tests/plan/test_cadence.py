"""Every cell of a grid gets the same number of looks, and the last step is always one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.errors import ConfigError
from sft_experiments.plan.arithmetic import evaluation_steps, resolve_interval


@given(share=st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.05]), total=st.integers(20, 5000))
def test_a_share_gives_the_same_number_of_looks_for_any_length(share: float, total: int) -> None:
    steps = evaluation_steps(share, total)
    assert len(steps) == round(1 / share)
    assert steps[-1] == total
    assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) <= total * share + 1


@given(interval=st.integers(1, 300), total=st.integers(1, 2000))
def test_an_interval_in_steps_ends_with_the_last_step(interval: int, total: int) -> None:
    steps = evaluation_steps(interval, total)
    assert steps == sorted({*range(interval, total + 1, interval), total})


def test_short_trainings_are_looked_at_no_more_often_than_they_have_steps() -> None:
    assert evaluation_steps(0.2, 3) == [1, 2, 3]


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_an_interval_that_is_neither_steps_nor_a_share_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"train\.logging_steps"):
        resolve_interval("train.logging_steps", value, 100)


def test_the_tutorial_interval_is_kept() -> None:
    assert resolve_interval("train.logging_steps", 10, 1000) == 10
    assert evaluation_steps(100, 250) == [100, 200, 250]
