"""The learning rate of every step, from transformers' own schedulers: what a run will log."""

import torch
from transformers import get_scheduler

from sft_experiments.plan.batch import StepPlan
from sft_experiments.schema import Config
from sft_experiments.training.arguments import scheduler_arguments


def planned_learning_rates(config: Config, steps: StepPlan) -> list[float]:
    """The learning rate of optimizer step 1, 2, ..., as the optimizer uses it in that step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.train.learning_rate)
    scheduler = get_scheduler(
        config.scheduler.name,
        optimizer,
        num_warmup_steps=steps.warmup_steps,
        num_training_steps=steps.total_steps,
        scheduler_specific_kwargs=scheduler_arguments(config, steps),
    )
    rates = []
    for _ in range(steps.total_steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates
