"""What is derived before training, each value with its reason: batch, steps, precision, and whether it all fits."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Optional

from sft_experiments.models.shape import Shape, shape_of
from sft_experiments.plan.arithmetic import AUTO, divisors, plan_batch
from sft_experiments.plan.data_facts import DataFacts, data_facts
from sft_experiments.plan.gpus import gpus
from sft_experiments.plan.machine import (
    PARAMETERS,
    check_device_count,
    host_capacity_gib,
    idle_accelerator,
    resolve_device,
    resolve_precision,
    resolve_threads,
    resolve_tuning,
)
from sft_experiments.plan.memory import MemoryEstimate, Workload, estimate_memory
from sft_experiments.runs.plan_file import FUSED, ON, UNFUSED, BatchPlan, Choice, Plan
from sft_experiments.schema import Config, Device, PackingStrategy, PeftMethod, Precision
from sft_experiments.values import GIB, format_value, gib, scaled

# Without a memory estimate, `auto` stops here: larger micro-batches gain little speed on any device we know.


TIGHT = 0.9  # above this share of the device's memory an estimate is called tight


def workload(config: Config, plan: "Plan", facts: Optional[DataFacts]) -> Workload:
    """What the device has to do in a step. Unprepared data count with rows of max_length, all supervised."""
    method = "full" if config.peft.method is PeftMethod.none else config.peft.method.value
    return Workload(
        precision=plan.precision.value,
        per_device_batch=plan.batch.per_device_train_batch_size,
        length=facts.longest if facts and facts.longest else config.dataset.max_length,
        accumulation=plan.batch.gradient_accumulation_steps,
        supervised_share=facts.supervised_share if facts and facts.supervised_share is not None else 1.0,
        device=plan.device.value,
        method=method,
        lora_r=config.peft.r,
        checkpointing=config.train.activation_checkpointing,
        packed=config.dataset.packing is not PackingStrategy.none,
        optim=plan.optimizer(config.train.optim),
        devices=plan.batch.num_devices,
        sharded=config.compute.fsdp,
    )


def device_memory(config: Config, plan: "Plan") -> Optional[float]:
    """Bytes that others leave of the fullest GPU that a run may get; on the CPU the host's, shared by the ranks.

    So with GPUs that share the host's memory.
    """
    if plan.device.value == "cuda":
        found = [gpu for gpu in gpus(config.compute.devices) if gpu.memory_gib is not None]
        idle = [gpu for gpu in found if not gpu.is_busy] if not config.compute.devices else []
        left = [gpu.memory_gib - gpu.used_gib for gpu in idle or found if gpu.memory_gib is not None]
        if left:
            return min(left) * GIB
    return host_capacity_gib() * GIB / plan.batch.num_devices


def verdict(memory: Optional[MemoryEstimate], available: Optional[float]) -> Optional[str]:
    """fits, tight or will not fit; None when either side is unknown."""
    if memory is None or available is None:
        return None
    if memory.total > available:
        return "will not fit"
    return "tight" if memory.total > TIGHT * available else "fits"


def make_it_fit(
    config: Config, plan: "Plan", facts: Optional[DataFacts], shape: Shape, available: Optional[float]
) -> list[str]:
    """Settings to add one after the other, mildest first, each with its estimate, up to the first that fits."""
    per_device = plan.batch.effective_batch_size // plan.batch.num_devices
    changes: list[tuple[str, dict[str, Any]]] = [
        ("train.per_device_train_batch_size=1", {"per_device_batch": 1, "accumulation": per_device}),
        ("train.activation_checkpointing=true", {"checkpointing": True}),
        *([("compute.fused_optimizer=true", {"optim": FUSED})] if config.train.optim == UNFUSED else []),
        *([("compute.fsdp=true", {"sharded": True})] if plan.batch.num_devices > 1 else []),
        *([("peft=lora", {"method": "lora", "lora_r": 16})] if config.peft.method is PeftMethod.none else []),
        *([("peft=qlora", {"method": "qlora", "lora_r": 16})] if plan.batch.num_devices == 1 else []),
    ]
    work = workload(config, plan, facts)
    total, advice = estimate_memory(shape, work).total, []
    for setting, change in changes:
        changed = replace(work, **change)
        lower = estimate_memory(shape, changed).total
        if lower >= total:
            continue
        work, total = changed, lower
        advice.append(f"{setting}: {gib(total)}")
        if available is not None and total <= TIGHT * available:
            return advice
    return [*advice, "none of these fits one such device"]


def on_a_gpu(config: Config, plan: "Plan", device_bytes: float) -> "Plan":
    """The plan for a GPU of that memory, so that a laptop can plan for one. A GPU that is here keeps its own."""
    if plan.device.value != "cuda":
        if config.compute.device is not Device.auto:
            return plan
        plan = replace(plan, device=Choice("cuda", "assumed, because --device-memory was given"))
        if config.compute.fused_optimizer is None:
            plan = replace(plan, tuning={**plan.tuning, "fused_optimizer": Choice(ON, "assumed")})
        if config.train.precision is Precision.auto and config.model.size_class != "tiny":
            parameters = PARAMETERS[config.peft.method is not PeftMethod.none]
            plan = replace(plan, precision=Choice("bf16", f"assumed: {parameters}, bf16 autocast"))
    return replace(plan, batch=auto_batch(config, plan, device_bytes))


def auto_batch(config: Config, plan: "Plan", device_bytes: Optional[float] = None) -> BatchPlan:
    """On CUDA, the largest per-device batch that is estimated to fit; elsewhere, and when set by hand, the plan's own.

    When none fits, 1 is tried, and what happens when memory runs out has the last word.
    """
    batch, wanted = plan.batch, config.train.per_device_train_batch_size
    if wanted != AUTO or plan.device.value != "cuda":
        return batch
    shape = shape_of(config.model)
    available = device_bytes if device_bytes is not None else device_memory(config, plan)
    if shape is None or available is None:
        return batch
    work = workload(config, plan, data_facts(config))
    per_step = batch.per_device_train_batch_size * batch.gradient_accumulation_steps
    for size in reversed(divisors(per_step)):
        tried = replace(work, per_device_batch=size, accumulation=per_step // size)
        fits = estimate_memory(shape, tried).total <= TIGHT * available
        if size == 1 or (size <= batch.per_device_train_batch_size and fits):
            return BatchPlan(size, per_step // size, batch.num_devices)
    return batch


TINY_REASON = "a tiny model: casts to bf16 cost more than they save"


def build_plan(config: Config, concurrent_trials: int = 1) -> Plan:
    """Derive batch split, device, precision and threads. Raises ``ConfigError`` for what cannot be."""
    device = resolve_device(config.compute.device, config.compute.devices)
    check_device_count(device.value, config.compute.num_devices, config.compute.devices)
    plan = Plan(
        batch=plan_batch(
            config.train.effective_batch_size, config.train.per_device_train_batch_size, config.compute.num_devices
        ),
        device=device,
        precision=_precision(config, device.value),
        threads=resolve_threads(config.compute.threads, concurrent_trials),
        tuning=resolve_tuning(config.compute, device.value, config.train.precision),
        warnings=[*outside_range(config), *_unused(config, device.value, concurrent_trials)],
    )
    return replace(plan, batch=auto_batch(config, plan))


def _unused(config: Config, device: str, concurrent_trials: int) -> Iterator[str]:
    """One line for each GPU that someone may expect to be used."""
    if config.compute.device is Device.auto and device == "cpu" and (reason := idle_accelerator()):
        yield f"training on the CPU: {reason}"
    named, used = len(config.compute.devices or []), config.compute.num_devices * concurrent_trials
    if named > used:
        yield (
            f"compute.devices names {named} GPUs, {used} of them will be used: compute.num_devices={named} trains one"
            " model on all"
        )


def _precision(config: Config, device: str) -> Choice:
    if config.train.precision is Precision.auto and config.model.size_class == "tiny":
        return Choice("fp32", TINY_REASON)
    adapters = config.peft.method is not PeftMethod.none
    return resolve_precision(config.train.precision, device, config.compute.devices, adapters)


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
