"""What a run will do and cost, put together for one trial: steps, tokens, memory, time and disk."""

from dataclasses import asdict, dataclass
from typing import Any, Optional

from sft_experiments.models.shape import Shape
from sft_experiments.plan.arithmetic import evaluation_steps
from sft_experiments.plan.data_facts import DataFacts, steps_of
from sft_experiments.plan.derive import device_memory, make_it_fit, verdict, workload
from sft_experiments.plan.duration import Duration, Likeness, Load, Measured, computed_duration, from_measured
from sft_experiments.plan.gpus import gpus
from sft_experiments.plan.memory import MemoryEstimate, estimate_memory
from sft_experiments.runs.plan_file import Plan, StepPlan
from sft_experiments.schema import Config, PeftMethod, Precision


@dataclass(frozen=True)
class Forecast:
    """Everything derived for one trial. None: not known before the data are prepared, or for this model."""

    steps: Optional[StepPlan]
    tokens: Optional[int]  # of the whole training
    memory: Optional[MemoryEstimate]
    memory_verdict: Optional[str]  # fits, tight or will not fit
    duration: Optional[Duration]
    disk_bytes: Optional[float]
    advice: list[str]

    def as_dict(self) -> dict[str, Any]:
        memory = {**asdict(self.memory), "total": self.memory.total} if self.memory else None
        return {**asdict(self), "memory": memory}


def forecast(
    config: Config,
    plan: Plan,
    facts: Optional[DataFacts],
    shape: Optional[Shape],
    runs: list[Measured],
    device_bytes: Optional[float] = None,
) -> Forecast:
    """The forecast of one trial. Raises ``ConfigError`` when warmup is longer than the training."""
    steps = steps_of(config, facts)
    tokens = _tokens(facts, steps, config)
    memory = estimate_memory(shape, workload(config, plan, facts)) if shape else None
    available = device_bytes if device_bytes is not None else device_memory(config, plan)
    state = verdict(memory, available)
    return Forecast(
        steps=steps,
        tokens=tokens,
        memory=memory,
        memory_verdict=state,
        duration=_duration(config, plan, facts, shape, steps, tokens, runs),
        disk_bytes=disk_bytes(config, shape) if shape else None,
        advice=make_it_fit(config, plan, facts, shape, available) if shape and state == "will not fit" else [],
    )


def _tokens(facts: Optional[DataFacts], steps: Optional[StepPlan], config: Config) -> Optional[int]:
    if facts is None or facts.tokens is None or steps is None:
        return None
    if config.train.max_steps is None:
        return round(facts.tokens * config.train.num_train_epochs)
    return round(facts.tokens / facts.sequences * config.train.effective_batch_size * steps.total_steps)


def _duration(
    config: Config,
    plan: Plan,
    facts: Optional[DataFacts],
    shape: Optional[Shape],
    steps: Optional[StepPlan],
    tokens: Optional[int],
    runs: list[Measured],
) -> Optional[Duration]:
    if tokens is None or facts is None or steps is None:
        return None
    looks = len(evaluation_steps(config.train.eval_steps, steps.total_steps)) + config.train.eval_on_start
    measured = from_measured(runs, likeness(config, plan), plan.batch.effective_batch_size, tokens, looks)
    if measured is not None or shape is None:
        return measured
    full = config.peft.method is PeftMethod.none
    load = Load(
        tokens=tokens,
        micro_batches=steps.total_steps * plan.batch.gradient_accumulation_steps,
        mean_length=(facts.tokens or 0) / max(1, facts.documents),
        trainable_fraction=1.0 if full else shape.lora_parameters(config.peft.r) / shape.parameters,
        recomputes=config.train.activation_checkpointing,
        devices=plan.batch.num_devices,
    )
    return computed_duration(shape, load, plan.device.value, device_name(plan), plan.threads)


def device_name(plan: Plan) -> str:
    """As records have it; a GPU that is only assumed has no name, and so no known peak."""
    if plan.device.value != "cuda":
        return plan.device.value
    return gpus()[0].name if gpus() else "a GPU that is not here"


def likeness(config: Config, plan: Plan) -> Likeness:
    return Likeness(
        model=config.model.name,
        device=plan.device.value,
        device_name=device_name(plan),
        precision=plan.precision.value,
        threads=plan.threads,
        method=config.peft.method.name,
        max_length=config.dataset.max_length,
        packing=config.dataset.packing.name,
        num_devices=plan.batch.num_devices,
    )


def disk_bytes(config: Config, shape: Shape) -> float:
    """The most that a run holds at once: checkpoints (kept, best, and the one being written) and the final model.

    A checkpoint has the weights and two moments of each trained one; LoRA's has adapters only.
    """
    full = config.peft.method is PeftMethod.none
    size = 2 if full and config.train.precision is Precision.pure_bf16 else 4
    trained = shape.parameters if full else shape.lora_parameters(config.peft.r)
    checkpoints = config.train.save_total_limit + 2
    return float(trained * size * (3 * checkpoints + 1))
