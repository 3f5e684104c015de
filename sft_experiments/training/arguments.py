"""Our keys in upstream's spelling: the only module that names SFTConfig fields (a test compares them).

Also the learning rate of every step, from transformers' own schedulers: what a run will log.
"""

from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler
from trl import SFTConfig

from sft_experiments.errors import ConfigError, first_line
from sft_experiments.monitor.trackers.register import upstream_names
from sft_experiments.plan.arithmetic import SCHEDULES, resolve_interval
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import Plan, StepPlan
from sft_experiments.schema import Config, Direction, PackingStrategy, SchedulerConfig

NEEDS_PADDING = {"sdpa", "eager"}
NEVER = 10**9  # steps: our own callback decides when to evaluate and save


def training_arguments(config: Config, plan: Plan, folder: RunFolder, resumes: bool) -> SFTConfig:
    """The SFTConfig of a run whose data are prepared and whose attention is chosen.

    ``train.extra`` comes last: it holds only fields that nothing here sets.
    """
    train, batch, steps = config.train, plan.batch, plan.steps
    assert steps is not None and plan.attention is not None
    values: dict[str, Any] = {
        "output_dir": str(folder.checkpoints.resolve()),
        "learning_rate": train.learning_rate,
        "per_device_train_batch_size": batch.per_device_train_batch_size,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "per_device_eval_batch_size": plan.eval_batch(train.per_device_eval_batch_size),
        "num_train_epochs": train.num_train_epochs,
        "max_steps": steps.total_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2,
        "adam_epsilon": train.adam_epsilon,
        "bf16": plan.precision.value == "bf16",
        **_sharing(config),
        **_scheduler(config, steps),
        "warmup_steps": steps.warmup_steps,
        "seed": train.seed,
        "data_seed": train.data_seed,
        "use_cpu": plan.device.value == "cpu",
        **_tuning(train.optim, plan),
        "report_to": upstream_names(config.logger.trackers) or "none",
        **_cadence(config, steps, resumes),
        **_data(config, plan.attention.value),
        **_quiet(),
    }
    try:
        return SFTConfig(**{**values, **train.extra})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"SFTConfig refuses the settings: {first_line(error)}") from error


def _scheduler(config: Config, steps: StepPlan) -> dict[str, Any]:
    """What transformers is told of the schedule: one of the user's own is put in its place by the trainer."""
    if config.scheduler.name in SCHEDULES:
        return {"lr_scheduler_type": "constant"}
    return {"lr_scheduler_type": config.scheduler.name, "lr_scheduler_kwargs": scheduler_arguments(config, steps)}


def _tuning(optim: str, plan: Plan) -> dict[str, Any]:
    """What the plan chose for the device's sake. ``tf32`` stays upstream's None where the device knows none."""
    loaders = int(plan.tuning["dataloader_num_workers"].value) if "dataloader_num_workers" in plan.tuning else 0
    values: dict[str, Any] = {
        "optim": plan.optimizer(optim),
        "dataloader_num_workers": loaders,
        "dataloader_persistent_workers": loaders > 0,
        "dataloader_pin_memory": plan.is_on("pinned_memory"),
        "tf32": plan.is_on("tf32") if "tf32" in plan.tuning else None,
    }
    if plan.is_on("pinned_memory"):
        values["accelerator_config"] = {"non_blocking": True}
    return values


def _sharing(config: Config) -> dict[str, Any]:
    """How devices share the model, and what is recomputed: FSDP has a way of its own, without gathering twice."""
    recompute = config.train.activation_checkpointing
    if not config.compute.fsdp:
        return {"activation_checkpointing": recompute}
    return {
        "activation_checkpointing": False,
        "fsdp": True,
        "fsdp_config": {"activation_checkpointing": recompute},
    }


def _cadence(config: Config, steps: StepPlan, resumes: bool) -> dict[str, Any]:
    train = config.train
    metric = config.objective.metric.removeprefix("eval/")
    return {
        "logging_steps": resolve_interval("train.logging_steps", train.logging_steps, steps.total_steps),
        "eval_strategy": "steps",
        "eval_steps": NEVER,
        "eval_on_start": train.eval_on_start and not resumes,
        "save_strategy": "steps",
        "save_steps": NEVER,
        "load_best_model_at_end": train.load_best_model_at_end,
        "metric_for_best_model": f"eval_{metric}",
        "greater_is_better": config.objective.direction is Direction.maximize,
    }


def _data(config: Config, attention: str) -> dict[str, Any]:
    """The data arrive tokenised, masked, cut and packed; TRL only collates them, without padding where possible.

    TRL asks for max_length=None in that case, because it would not enforce it; our rows are cut already.
    """
    packs = config.dataset.packing is PackingStrategy.bfd
    return {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": config.dataset.max_length if packs else None,
        "packing": packs,
        "packing_strategy": "bfd",
        "padding_free": attention not in NEEDS_PADDING,
        "eval_packing": False,
    }


def _quiet() -> dict[str, Any]:
    """The Trainer's own display and filters are off: ours show more, and its filter would hide a diverged run."""
    return {
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "logging_first_step": False,
        "prediction_loss_only": True,
        "remove_unused_columns": True,
    }


def planned_learning_rates(config: Config, steps: StepPlan) -> list[float]:
    """The learning rate of optimizer step 1, 2, ..., as the optimizer uses it in that step."""
    arguments = scheduler_arguments(config, steps)
    return learning_rates(
        config.scheduler, config.train.learning_rate, steps.warmup_steps, steps.total_steps, arguments
    )


def learning_rates(
    scheduler: SchedulerConfig, peak: float, warmup_steps: int, total_steps: int, arguments: dict[str, Any]
) -> list[float]:
    """The same from plain numbers; ``arguments`` are those of the scheduler function."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    if scheduler.name in SCHEDULES:
        schedule = own_schedule(scheduler, optimizer, warmup_steps, total_steps)
    else:
        schedule = get_scheduler(
            scheduler.name,
            optimizer,
            num_warmup_steps=warmup_steps,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=arguments,
        )
    rates = []
    for _ in range(total_steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def own_schedule(
    scheduler: SchedulerConfig, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> LambdaLR:
    """A schedule of the user's own on an optimizer whose learning rate is the peak."""
    share = SCHEDULES[scheduler.name].share
    return LambdaLR(optimizer, partial(share, warmup_steps=warmup_steps, total_steps=total_steps, **scheduler.kwargs))


def scheduler_arguments(config: Config, steps: StepPlan) -> dict[str, Any]:
    """Arguments of the scheduler function. WSD's decay is configured as a share and becomes a number of steps."""
    arguments = dict(config.scheduler.kwargs)
    if "decay_ratio" in arguments:
        arguments["num_decay_steps"] = round(arguments.pop("decay_ratio") * steps.total_steps)
    return arguments
