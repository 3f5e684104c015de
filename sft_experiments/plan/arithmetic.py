"""Arithmetic of batches and steps: the user states the effective batch, the per-device batch and the rest follow.

effective batch = per-device batch x gradient accumulation steps x number of devices, always exact.

At the end: the register of learning rate schedules of the user's own. A module adds one with ``add_schedule``
(``plugins=[my_module]``); every other ``scheduler.name`` is one of transformers'.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Optional, Union

from sft_experiments.errors import ConfigError, first_line
from sft_experiments.files import source_hash
from sft_experiments.runs.plan_file import BatchPlan, StepPlan
from sft_experiments.runs.record import OWN_SCHEDULE
from sft_experiments.schema import SchedulerConfig

AUTO = "auto"
# Without a memory estimate, `auto` stops here: larger micro-batches gain little speed on any device we know.
LARGEST_AUTO_BATCH = 64


def halved(batch: BatchPlan) -> Optional[BatchPlan]:
    """The same effective batch with a smaller per-device batch (its next smaller divisor); None at 1."""
    per_step = batch.per_device_train_batch_size * batch.gradient_accumulation_steps
    smaller = [size for size in divisors(per_step) if size <= batch.per_device_train_batch_size // 2]
    return BatchPlan(smaller[-1], per_step // smaller[-1], batch.num_devices) if smaller else None


def divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def plan_batch(
    effective_batch_size: int,
    per_device_train_batch_size: Union[int, str] = AUTO,
    num_devices: int = 1,
    largest: int = LARGEST_AUTO_BATCH,
) -> BatchPlan:
    """Derive per-device batch and accumulation so that the product is exactly ``effective_batch_size``.

    ``auto`` takes the largest per-device batch, up to ``largest``, that divides evenly.
    Raises ``ConfigError`` naming the nearest possible values when no exact split exists.
    """
    _check_positive("train.effective_batch_size", effective_batch_size)
    _check_positive("compute.num_devices", num_devices)
    if per_device_train_batch_size == AUTO:
        _check_multiple(effective_batch_size, num_devices, f"{num_devices} devices")
        per_device = max(size for size in divisors(effective_batch_size // num_devices) if size <= largest)
    else:
        per_device = _as_int("train.per_device_train_batch_size", per_device_train_batch_size)
        unit = per_device * num_devices
        _check_multiple(effective_batch_size, unit, f"{per_device} per device x {num_devices} device(s)")
    return BatchPlan(per_device, effective_batch_size // (per_device * num_devices), num_devices)


def plan_steps(
    sequences: int,
    effective_batch_size: int,
    num_train_epochs: float,
    max_steps: Optional[int] = None,
    warmup_ratio: Optional[float] = None,
    warmup_steps: Optional[int] = None,
) -> StepPlan:
    """Optimizer steps as the Trainer counts them: a partial last group of an epoch is a step of its own (ceil)."""
    steps_per_epoch = max(1, math.ceil(sequences / effective_batch_size))
    total = max_steps if max_steps is not None else math.ceil(steps_per_epoch * num_train_epochs)
    return StepPlan(
        sequences=sequences,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=resolve_warmup(total, warmup_ratio, warmup_steps),
        last_group_examples=sequences - (steps_per_epoch - 1) * effective_batch_size,
    )


def resolve_warmup(total_steps: int, warmup_ratio: Optional[float], warmup_steps: Optional[int]) -> int:
    """Warmup in optimizer steps from either dial. Raises ``ConfigError`` when it is longer than the training."""
    steps = warmup_steps if warmup_steps is not None else math.ceil(total_steps * (warmup_ratio or 0.0))
    if steps > total_steps:
        raise ConfigError(f"scheduler.warmup_steps={steps} is more than the {total_steps} steps of the whole training")
    return steps


def _as_int(key: str, value: Union[int, str]) -> int:
    try:
        number = int(value)
    except ValueError:
        raise ConfigError(f"{key}={value!r}: must be {AUTO} or a whole number of at least 1") from None
    _check_positive(key, number)
    return number


def _check_positive(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key}={value}: must be a whole number of at least 1")


def _check_multiple(effective: int, unit: int, meaning: str) -> None:
    if effective % unit == 0:
        return
    below, above = effective // unit * unit, (effective // unit + 1) * unit
    possible = f"{below} or {above}" if below else f"{above}"
    raise ConfigError(
        f"train.effective_batch_size={effective} is not a multiple of {unit} ({meaning}); nearest possible: {possible}"
    )


def resolve_interval(key: str, value: Union[int, float], total_steps: int) -> int:
    """An interval in optimizer steps from a number of steps (>= 1) or a share of all steps (above 0, below 1)."""
    if value <= 0 or (value > 1 and value != int(value)):
        raise ConfigError(f"{key}={value}: must be a whole number of steps, or a share of the training between 0 and 1")
    return max(1, round(value * total_steps)) if value < 1 else int(value)


def evaluation_steps(eval_steps: Union[int, float], total_steps: int) -> list[int]:
    """The optimizer steps after which to evaluate and save; the last step is always one of them.

    A share spreads the looks evenly: 0.2 of 47 steps gives 9, 19, 28, 38, 47.
    """
    if eval_steps < 1:
        looks = max(1, round(1 / eval_steps)) if eval_steps > 0 else 0
        if not looks:
            raise ConfigError(f"train.eval_steps={eval_steps}: must be a number of steps or a share between 0 and 1")
        return sorted({max(1, round(total_steps * look / looks)) for look in range(1, looks + 1)})
    interval = resolve_interval("train.eval_steps", eval_steps, total_steps)
    return sorted({*range(interval, total_steps + 1, interval), total_steps})


def rung_step(share: float, eval_steps: Union[int, float], total_steps: int, warmup_steps: int) -> int:
    """The step of a rung: the first planned evaluation after ``share`` of the training and after warmup."""
    earliest = max(round(share * total_steps), warmup_steps + 1)
    return next((step for step in evaluation_steps(eval_steps, total_steps) if step >= earliest), total_steps)


def steps_line(steps: StepPlan, batch: BatchPlan) -> str:
    """The step arithmetic in a sentence."""
    last = steps.last_group_examples
    partial = f"; the last step of an epoch holds {last}" if last < batch.effective_batch_size else ""
    return (
        f"{steps.total_steps} steps, {steps.warmup_steps} of them warmup; {steps.steps_per_epoch} per epoch,"
        f" each {steps.examples_per_step(batch):g} examples and about {steps.tokens_per_step(batch):,} tokens{partial}"
    )


@dataclass(frozen=True)
class Schedule:
    """One entry.

    ``share(step, warmup_steps=, total_steps=, **scheduler.kwargs)`` is the learning rate of an optimizer step, counted
    from 0, as a share of ``train.learning_rate``. It must depend on nothing else: a resumed run asks again.
    """

    name: str
    share: Callable[..., float]
    version: str  # the content of the file that ``share`` stands in: part of a trial's identity


SCHEDULES: dict[str, Schedule] = {}


def add_schedule(name: str, share: Callable[..., float]) -> None:
    """Put a schedule into the register. Raises ``ConfigError`` when another one has its name."""
    schedule = Schedule(name, share, source_hash(share))
    if SCHEDULES.setdefault(name, schedule) != schedule:
        raise ConfigError(f"the schedule {name} is in the register already")


def schedule_version(scheduler: SchedulerConfig) -> dict[str, str]:
    """A fingerprint of the code of a schedule of the user's own; none for those of transformers."""
    own = SCHEDULES.get(scheduler.name)
    return {f"{OWN_SCHEDULE}{own.name}": own.version} if own else {}


def schedule_fault(scheduler: SchedulerConfig) -> str:
    """Why a schedule of the user's own gives no learning rate with ``scheduler.kwargs``; "" when it gives one."""
    try:
        share: Any = SCHEDULES[scheduler.name].share(1, warmup_steps=1, total_steps=10, **scheduler.kwargs)
    except Exception as error:  # noqa: BLE001 it is not our code: whatever it raises is a mistake in a setting
        return f"scheduler.name={scheduler.name}: {type(error).__name__}: {first_line(error)}"
    if isinstance(share, Real) and 0 <= float(share) < math.inf:
        return ""
    return f"scheduler.name={scheduler.name}: step 1 of 10 has {share!r}: must be a share of the peak, at least 0"
