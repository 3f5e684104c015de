"""Where a value came from: the command line, the sweep, an experiment, the model's size class, or a default."""

from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from sft_experiments.schema import Config

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


def values_with_origin(
    composed: DictConfig,
    config: Config,
    overrides: list[str],
    axes: dict[str, Any],
    experiment: Optional[str],
    conf: Path,
) -> dict[str, dict[str, Any]]:
    """``{key: {"value", "origin"}}`` for every dial that counts: with ``train.max_steps`` the epochs do not.

    ``config`` is what ``composed`` resolves to.
    """
    raw = {group: OmegaConf.to_container(composed[group], resolve=False) for group in ("train", "scheduler")}
    typed = {override.lstrip("+~").split("=", 1)[0] for override in overrides}
    named = _experiment_keys(experiment, conf)
    size_class = f"model size class {config.model.size_class}"
    found = {}
    for key in DIALS:
        value = attrgetter(key)(config)
        if value is not None and (key != "train.num_train_epochs" or config.train.max_steps is None):
            origin = _origin(key, typed, axes, named)
            found[key] = {"value": value, "origin": origin or _default(select(raw, key), size_class, config)}
    return found


def _origin(key: str, typed: set[str], axes: dict[str, Any], named: set[str]) -> Optional[str]:
    """Who set a key; None when nobody did."""
    group = key.split(".")[0]
    if key in axes or group in axes:
        return "sweep"
    if key in typed or group in typed:
        return "command line"
    return "experiment" if key in named else None


def _default(raw: Any, size_class: str, config: Config) -> str:
    """What a default follows: ``raw`` is the value as conf/ has it, before interpolation."""
    if "model.recommended" not in str(raw):
        return "default"
    is_scaled = "peft.learning_rate_factor" in str(raw) and config.peft.learning_rate_factor != 1
    return f"{size_class} x peft.learning_rate_factor" if is_scaled else size_class


@lru_cache
def _experiment_keys(experiment: Optional[str], conf: Path) -> set[str]:
    """The dotted keys that an experiment file sets; the file may also lie in a --config-dir, then nothing is known."""
    file = conf / "experiment" / f"{experiment}.yaml"
    if experiment is None or not file.is_file():
        return set()
    return set(flatten(OmegaConf.to_container(OmegaConf.load(file), resolve=False)))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``{"a.b": value}``."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def select(values: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings; None when there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
