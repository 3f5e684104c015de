"""What is derived before training, each value with its reason: the content of plan.json."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from sft_experiments.plan.batch import BatchPlan, StepPlan, plan_batch
from sft_experiments.plan.device import Choice, check_device_count, resolve_device, resolve_precision, resolve_threads
from sft_experiments.plan.fit import auto_batch
from sft_experiments.plan.guidance import outside_range
from sft_experiments.schema import Config, Precision

TINY_REASON = "a tiny model: casts to bf16 cost more than they save"


@dataclass(frozen=True)
class Plan:
    """The derived half of a run. Steps are known once the data have been prepared."""

    batch: BatchPlan
    device: Choice
    precision: Choice
    threads: int
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "batch": {"effective_batch_size": self.batch.effective_batch_size, **asdict(self.batch)},
            "device": asdict(self.device),
            "precision": asdict(self.precision),
            "threads": self.threads,
            "warnings": self.warnings,
        }


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


def steps_as_dict(steps: StepPlan, batch: BatchPlan, tokens: int, documents: int) -> dict[str, Any]:
    """The part of plan.json that needs data facts. ``tokens`` and ``documents`` are those of one epoch."""
    per_sequence = tokens / max(1, steps.sequences)
    return {
        **asdict(steps),
        "examples_per_step": round(documents / max(1, steps.sequences) * batch.effective_batch_size, 1),
        "tokens_per_step": round(per_sequence * batch.effective_batch_size),
        "tokens_per_epoch": tokens,
        "documents": documents,
        "last_group_is_partial": steps.last_group_examples < batch.effective_batch_size,
    }


def steps_line(steps: dict[str, Any]) -> str:
    """The step arithmetic in a sentence."""
    last = steps["last_group_examples"]
    partial = f"; the last step of an epoch holds {last}" if steps["last_group_is_partial"] else ""
    return (
        f"{steps['total_steps']} steps, {steps['warmup_steps']} of them warmup; {steps['steps_per_epoch']} per epoch,"
        f" each {steps['examples_per_step']:g} examples and about {steps['tokens_per_step']:,} tokens{partial}"
    )
