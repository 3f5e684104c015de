"""Where a value came from: the command line, the sweep, an experiment, the model's size class, or a default."""

from operator import attrgetter
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from sft_experiments.config.hydra import Request
from sft_experiments.schema import Config
from sft_experiments.values import select

# The dials that a plan lists, in the order of the table of recommended values.
DIALS = (
    "train.learning_rate",
    "train.effective_batch_size",
    "train.num_train_epochs",
    "train.max_steps",
    "scheduler.name",
    "scheduler.warmup_ratio",
    "scheduler.warmup_steps",
    "train.weight_decay",
    "train.max_grad_norm",
)


def values_with_origin(composed: DictConfig, config: Config, request: Request) -> dict[str, dict[str, Any]]:
    """``{key: {"value", "origin"}}`` for every dial that counts: with ``train.max_steps`` the epochs do not.

    ``config`` is what ``composed`` resolves to.
    """
    raw = {group: OmegaConf.to_container(composed[group], resolve=False) for group in ("train", "scheduler")}
    typed = {override.lstrip("+~").split("=", 1)[0] for override in request.overrides}
    found = {}
    for key in DIALS:
        value = attrgetter(key)(config)
        if value is not None and (key != "train.num_train_epochs" or config.train.max_steps is None):
            origin = (
                _set_by_name(key, typed, request)
                or _size_class(select(raw, key), config)
                or _set_by_group(key, typed, request)
            )
            found[key] = {"value": value, "origin": origin or "default"}
    return found


def _set_by_name(key: str, typed: set[str], request: Request) -> Optional[str]:
    """Who named this very key; None when nobody did."""
    if key in request.axes:
        return "sweep"
    if key in typed:
        return "command line"
    return "experiment" if key in request.experiment_keys else None


def _size_class(raw: Any, config: Config) -> Optional[str]:
    """The size class that a value follows; ``raw`` is the value as conf/ has it, before interpolation."""
    if "model.recommended" not in str(raw):
        return None
    is_scaled = "peft.learning_rate_factor" in str(raw) and config.peft.learning_rate_factor != 1
    return f"model size class {config.model.size_class}" + " x peft.learning_rate_factor" * is_scaled


def _set_by_group(key: str, typed: set[str], request: Request) -> Optional[str]:
    """Who chose the option that the value stands in (``scheduler=linear``); None when nobody did."""
    group = key.split(".")[0]
    if group in request.axes:
        return "sweep"
    return "command line" if group in typed else None
