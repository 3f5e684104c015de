"""What is derived before training, each value with its reason: the content of plan.json."""

from collections.abc import Iterator
from dataclasses import replace

from sft_experiments.plan.arithmetic import plan_batch
from sft_experiments.plan.fit import auto_batch
from sft_experiments.plan.machine import check_device_count, resolve_device, resolve_precision, resolve_threads
from sft_experiments.runs.plan_file import Choice, Plan
from sft_experiments.schema import Config, Precision
from sft_experiments.text import format_value
from sft_experiments.values import scaled

TINY_REASON = "a tiny model: casts to bf16 cost more than they save"


def build_plan(config: Config, concurrent_trials: int = 1) -> Plan:
    """Derive batch split, device, precision and threads. Raises ``ConfigError`` for what cannot be."""
    device = resolve_device(config.compute.device)
    check_device_count(device.value, config.compute.num_devices)
    plan = Plan(
        batch=plan_batch(
            config.train.effective_batch_size, config.train.per_device_train_batch_size, config.compute.num_devices
        ),
        device=device,
        precision=_precision(config, device.value),
        threads=resolve_threads(config.compute.threads, concurrent_trials),
        warnings=list(outside_range(config)),
    )
    return replace(plan, batch=auto_batch(config, plan))


def _precision(config: Config, device: str) -> Choice:
    if config.train.precision is Precision.auto and config.model.size_class == "tiny":
        return Choice("fp32", TINY_REASON)
    return resolve_precision(config.train.precision, device)


REASONS = {
    "train.learning_rate": "too high overwrites what the model knows or diverges, too low does not learn in the time",
    "train.effective_batch_size": "small batches are noisy, large ones take few steps per epoch",
    "train.num_train_epochs": "more passes over the same rows overfit, fewer underfit",
    "scheduler.warmup_ratio": "a short warmup risks an early spike, a long one wastes steps",
    "train.weight_decay": "regularises; far outside, it shrinks what was learned",
}


def outside_range(config: Config) -> Iterator[str]:
    """One line for each dial outside its range. LoRA's learning rates are compared with the scaled range."""
    table, factor = config.model.recommended, config.peft.learning_rate_factor
    checked = {
        "train.learning_rate": (config.train.learning_rate, scaled(table.learning_rate_range, factor)),
        "train.effective_batch_size": (config.train.effective_batch_size, table.effective_batch_size_range),
        "train.weight_decay": (config.train.weight_decay, table.weight_decay_range),
    }
    if config.train.max_steps is None:
        checked["train.num_train_epochs"] = (config.train.num_train_epochs, table.num_train_epochs_range)
    warms_up = config.scheduler.name != "constant" and config.scheduler.warmup_steps is None
    if warms_up and config.scheduler.warmup_ratio is not None:
        checked["scheduler.warmup_ratio"] = (config.scheduler.warmup_ratio, table.warmup_ratio_range)
    for key, (value, (low, high)) in checked.items():
        if not low <= value <= high:
            allowed = f"{format_value(low)} to {format_value(high)}" if low != high else format_value(low)
            size = config.model.size_class
            yield f"{key}={format_value(value)} is outside {allowed}, the range recommended for {size}: {REASONS[key]}"
