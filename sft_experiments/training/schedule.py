"""The learning rate of every step, from transformers' own schedulers: what a run will log."""

from typing import Any

import torch
from transformers import get_scheduler

from sft_experiments.runs.plan_file import StepPlan
from sft_experiments.schema import Config, SchedulerConfig


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


def scheduler_arguments(config: Config, steps: StepPlan) -> dict[str, Any]:
    """Arguments of the scheduler function. WSD's decay is configured as a share and becomes a number of steps."""
    arguments = dict(config.scheduler.kwargs)
    if "decay_ratio" in arguments:
        arguments["num_decay_steps"] = round(arguments.pop("decay_ratio") * steps.total_steps)
    return arguments
