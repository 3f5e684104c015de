"""What every number of the configuration may be, as a table: one line per key of the schema."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args

from sft_experiments.data.demo import SKILLS

INFINITE = math.inf
LARGEST_SEED = 2**32 - 1  # numpy's


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both allowed unless ``above_low`` or ``below_high`` says otherwise."""

    low: float
    high: float = INFINITE
    above_low: bool = False
    below_high: bool = False

    def __contains__(self, value: float) -> bool:
        """NaN and infinity are in no range."""
        above = self.low < value if self.above_low else self.low <= value
        below = value < self.high if self.below_high or self.high == INFINITE else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"a number above {self.low:g}" if self.above_low else f"at least {self.low:g}"
        if self.high == INFINITE:
            return low
        return f"{low} and {'below' if self.below_high else 'at most'} {self.high:.10g}"


POSITIVE = Range(0, above_low=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1, below_high=True)  # 1 is never meant
SEED = Range(0, LARGEST_SEED)
ONE_PER_SKILL = Range(len(SKILLS))

RANGES: dict[str, Range] = {
    "model.num_parameters": POSITIVE,
    "model.recommended.learning_rate": POSITIVE,
    "model.recommended.learning_rate_range": POSITIVE,
    "model.recommended.learning_rates": POSITIVE,
    "model.recommended.effective_batch_size": COUNT,
    "model.recommended.effective_batch_size_range": COUNT,
    "model.recommended.effective_batch_sizes": COUNT,
    "model.recommended.num_train_epochs": POSITIVE,
    "model.recommended.num_train_epochs_range": POSITIVE,
    "model.recommended.warmup_ratio": SHARE,
    "model.recommended.warmup_ratio_range": SHARE,
    "model.recommended.weight_decay": NOT_NEGATIVE,
    "model.recommended.weight_decay_range": NOT_NEGATIVE,
    "model.recommended.max_grad_norm": POSITIVE,
    "dataset.weight": NOT_NEGATIVE,
    "dataset.demo.num_train": ONE_PER_SKILL,
    "dataset.demo.num_validation": ONE_PER_SKILL,
    "dataset.demo.seed": SEED,
    "dataset.validation_fraction": SHARE,
    "dataset.max_train_rows": COUNT,
    "dataset.max_validation_rows": COUNT,
    "dataset.max_length": COUNT,
    "dataset.max_drop_fraction": Range(0, 1),
    "scheduler.warmup_ratio": SHARE,
    "scheduler.warmup_steps": NOT_NEGATIVE,
    "train.learning_rate": POSITIVE,
    "train.effective_batch_size": COUNT,
    "train.per_device_train_batch_size": COUNT,
    "train.per_device_eval_batch_size": COUNT,
    "train.num_train_epochs": POSITIVE,
    "train.max_steps": COUNT,
    "train.weight_decay": NOT_NEGATIVE,
    "train.max_grad_norm": POSITIVE,
    "train.adam_beta1": SHARE,
    "train.adam_beta2": SHARE,
    "train.adam_epsilon": POSITIVE,
    "train.logging_steps": POSITIVE,
    "train.eval_steps": POSITIVE,
    "train.save_total_limit": COUNT,
    "train.early_stopping_patience": COUNT,
    "train.seed": SEED,
    "train.data_seed": SEED,
    "peft.r": NOT_NEGATIVE,
    "peft.lora_alpha": NOT_NEGATIVE,
    "peft.lora_dropout": SHARE,
    "peft.learning_rate_factor": POSITIVE,
    "logger.finish_seconds": NOT_NEGATIVE,
    "compute.num_devices": COUNT,
    "compute.threads": COUNT,
    "compute.dataloader_num_workers": NOT_NEGATIVE,
    "sweep.num_seeds": COUNT,
    "sweep.concurrent_trials": COUNT,
    "sweep.timeout_seconds": POSITIVE,
    "sweep.retries": NOT_NEGATIVE,
    "sweep.keep_models": Range(-1),
    "sweep.num_trials": COUNT,
    "sweep.search_seed": SEED,
    "generation.num_samples": NOT_NEGATIVE,
    "generation.max_new_tokens": COUNT,
    "generation.exact_match_rows": NOT_NEGATIVE,
    "monitor.stall_seconds": POSITIVE,
    "monitor.peak_tflops": POSITIVE,
}
# Numbers with a check of their own, because their order or their company decides too.
ELSEWHERE = {"sweep.rungs": "sweep/stoppable.py", "sweep.reduction_factor": "sweep/stoppable.py"}


def out_of_range(config: Any, prefix: str = "") -> Iterator[str]:
    """One line for every number of a config (or a group of it) that is out of its range; null and words pass."""
    for field in fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        null = ", or null" if type(None) in get_args(field.type) else ""
        if is_dataclass(value):
            yield from out_of_range(value, f"{key}.")
        elif isinstance(value, dict):
            yield from (line for name, item in value.items() for line in outside(f"{key}.{name}", item))
        else:
            yield from (f"{line}{null}" for line in outside(key, value))


def outside(key: str, value: Any, shown: str = "") -> Iterator[str]:
    """A line when a number, or one of a list, is not what the table allows. ``shown``: the key to name instead."""
    allowed = RANGES.get(key)
    numbers = value if isinstance(value, list) else [value]
    if allowed and any(isinstance(number, (int, float)) and number not in allowed for number in numbers):
        yield f"{shown or key}={value}: must be {allowed}"
