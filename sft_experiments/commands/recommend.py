"""`sft recommend MODEL`: the recommended values for a model, their ranges, and why."""

from argparse import Namespace
from typing import Any, Optional

from rich.table import Table

from sft_experiments.commands import Command, longhand
from sft_experiments.config.hydra import composed
from sft_experiments.launch.trial import plan_run
from sft_experiments.models.shape import BOUNDARIES, Shape, shape_of
from sft_experiments.plan.derive import REASONS
from sft_experiments.schema import Config, PeftMethod
from sft_experiments.terminal import console
from sft_experiments.values import format_count, format_value, scaled

# Learning rate = 5e-5 (LoRA: x 10) x (2000 / hidden size) ^ exponent, with an exponent for each family:
# Thinking Machines, tinker-cookbook, hyperparam_utils.get_lr (from sweeps over LoRA runs).
PRIOR_BASE = 5e-5
PRIOR_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
SIZE_NAMES = {"tiny": "tiny", "1b_3b": "1B-3B", "7b_13b": "7B-13B", "30b_70b": "30B-70B"}


def _recommend(parsed: Namespace) -> int:
    """The recommended values of a model. Takes settings like `sft train`."""
    settings = [item if "=" in item or item.startswith("-") else f"model={item}" for item in parsed.settings]
    with composed(longhand(settings)) as composer:
        config = plan_run(composer).config
    shape = shape_of(config.model)
    console.print(f"[bold]{config.model.name}[/bold]  {size_sentence(config, shape)}")
    console.print(recommended_table(config))
    for line in notes(config, shape):
        console.print(f"  {line}")
    return 0


def size_sentence(config: Config, shape: Optional[Shape]) -> str:
    """The size class and why the model is in it."""
    count = config.model.num_parameters or (shape.parameters if shape else None)
    limits = ", ".join(f"{SIZE_NAMES[name]} below {format_count(limit)}" for limit, name in BOUNDARIES)
    size = f"{format_count(count)} parameters" if count else "size from its name"
    own = config.model.size_class
    return f"{size}: size class {SIZE_NAMES.get(own, own)} [dim]({limits})[/dim]"


def recommended_table(config: Config) -> Table:
    """Each dial: recommended value, range, and what the range guards against."""
    advised, factor = config.model.recommended, config.peft.learning_rate_factor
    rows: list[tuple[str, Any, Any]] = [
        ("train.learning_rate", scaled(advised.learning_rate, factor), scaled(advised.learning_rate_range, factor)),
        ("train.effective_batch_size", advised.effective_batch_size, advised.effective_batch_size_range),
        ("train.num_train_epochs", advised.num_train_epochs, advised.num_train_epochs_range),
        ("scheduler.warmup_ratio", advised.warmup_ratio, advised.warmup_ratio_range),
        ("train.weight_decay", advised.weight_decay, advised.weight_decay_range),
        ("train.max_grad_norm", advised.max_grad_norm, None),
        ("scheduler", advised.scheduler, None),
    ]
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("  key", "start with", "range", "why"):
        found.add_column(header, no_wrap=header != "why")
    for key, value, span in rows:
        low_high = "" if span is None else format_value(float(span[0]))
        if span is not None and span[0] != span[1]:
            low_high += f" to {format_value(float(span[1]))}"
        found.add_row(f"  {key}", format_value(value), low_high, REASONS.get(key, ""))
    return found


def notes(config: Config, shape: Optional[Shape]) -> list[str]:
    """The default grid, LoRA's factor, a published prior, and the command to run."""
    advised, factor = config.model.recommended, config.peft.learning_rate_factor
    rates = ", ".join(format_value(rate) for rate in scaled(advised.learning_rates, factor))
    sizes = ", ".join(map(str, advised.effective_batch_sizes))
    lines = [f"default grid: learning rate {rates} x effective batch size {sizes}   (sft sweep)"]
    if config.peft.method is PeftMethod.none:
        lines.append("with peft=lora or qlora: ten times these learning rates")
    else:
        lines.append(f"learning rates are {factor:g} times those of full fine-tuning: peft.learning_rate_factor")
    prior = published_prior(config, shape)
    if prior is not None:
        lines.append(prior)
    if config.model.size_class == "tiny":
        lines.append("source: measured on the demo data; it says nothing about published models")
    else:
        lines.append("rule of thumb: 2e-5 from 7B up, 5e-5 below; these are starting points for a sweep, not optima")
    return lines


def published_prior(config: Config, shape: Optional[Shape]) -> Optional[str]:
    """A published formula for the families it was fitted on; None for others, and when the hidden size is a guess."""
    family = next((name for name in PRIOR_EXPONENTS if name in config.model.name.lower()), None)
    if family is None or shape is None or config.model.size_class == "tiny" or shape.source.startswith("a typical"):
        return None
    factor = 1 if config.peft.method is PeftMethod.none else 10
    rate = PRIOR_BASE * factor * (2000 / shape.hidden) ** PRIOR_EXPONENTS[family]
    return (
        f"a published prior for {family} models of hidden size {shape.hidden}: {format_value(float(f'{rate:.2g}'))}"
        " (tinker-cookbook, fitted on LoRA runs; for comparison only)"
    )


COMMANDS = {
    "recommend": Command(
        _recommend,
        usage="sft recommend <option, Hub id or folder>  [peft=lora] [key=value ...]",
        takes_settings=True,
    )
}
