"""The effective batch is what the user sets: the derived split is always exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.errors import ConfigError
from sft_experiments.plan.arithmetic import halved, plan_batch, plan_steps, resolve_warmup
from sft_experiments.runs.plan_file import BatchPlan

sizes = st.integers(1, 2048)
devices = st.integers(1, 64)


@given(effective=sizes, num_devices=devices, largest=st.integers(1, 128))
def test_auto_split_is_exact_or_refused_with_multiples_on_both_sides(
    effective: int, num_devices: int, largest: int
) -> None:
    if effective % num_devices == 0:
        plan = plan_batch(effective, "auto", num_devices, largest)
        assert plan.effective_batch_size == effective
        assert plan.per_device_train_batch_size <= largest
        return
    with pytest.raises(ConfigError) as refusal:
        plan_batch(effective, "auto", num_devices, largest)
    above = (effective // num_devices + 1) * num_devices
    assert str(above) in str(refusal.value)
    assert f"train.effective_batch_size={effective}" in str(refusal.value)


@given(per_device=st.integers(1, 64), accumulation=st.integers(1, 64), num_devices=devices)
def test_given_per_device_batch_is_kept(per_device: int, accumulation: int, num_devices: int) -> None:
    effective = per_device * accumulation * num_devices
    assert plan_batch(effective, per_device, num_devices) == BatchPlan(per_device, accumulation, num_devices)


@pytest.mark.parametrize(
    ("per_device", "accumulation", "num_devices", "effective"),
    [(2, 16, 1, 32), (4, 8, 1, 32), (4, 4, 4, 64), (8, 2, 8, 128)],
)
def test_the_worked_examples_hold(per_device: int, accumulation: int, num_devices: int, effective: int) -> None:
    assert plan_batch(effective, per_device, num_devices).gradient_accumulation_steps == accumulation


@given(effective=sizes, per_device=st.integers(1, 64))
def test_halving_keeps_the_effective_batch_and_ends_at_one(effective: int, per_device: int) -> None:
    plan = plan_batch(effective, "auto", largest=per_device)
    seen = [plan]
    while (smaller := halved(seen[-1])) is not None:
        assert smaller.effective_batch_size == effective
        assert smaller.per_device_train_batch_size <= seen[-1].per_device_train_batch_size // 2
        seen.append(smaller)
    assert seen[-1].per_device_train_batch_size == 1


@pytest.mark.parametrize("value", ["x", "1.5", 0, -2])
def test_a_per_device_batch_that_is_no_number_is_refused_by_name(value: int | str) -> None:
    with pytest.raises(ConfigError, match=r"train\.per_device_train_batch_size"):
        plan_batch(32, value)


@given(sequences=st.integers(1, 10_000), effective=st.integers(1, 256), epochs=st.integers(1, 5))
def test_a_partial_last_group_is_a_step_of_its_own(sequences: int, effective: int, epochs: int) -> None:
    steps = plan_steps(sequences, effective, epochs)
    assert (steps.steps_per_epoch - 1) * effective < sequences <= steps.steps_per_epoch * effective
    assert steps.total_steps == steps.steps_per_epoch * epochs
    assert 1 <= steps.last_group_examples <= effective
    assert (steps.steps_per_epoch - 1) * effective + steps.last_group_examples == sequences


def test_max_steps_wins_over_epochs() -> None:
    assert plan_steps(1000, 10, num_train_epochs=3, max_steps=7).total_steps == 7


@given(total=st.integers(1, 100_000), ratio=st.floats(0, 0.99))
def test_warmup_ratio_never_exceeds_the_training(total: int, ratio: float) -> None:
    assert 0 <= resolve_warmup(total, ratio, None) <= total


def test_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps=50 is more than the 40 steps"):
        resolve_warmup(40, None, 50)
