"""Where a value came from: the command line, the sweep, an experiment, the model's size class, or a default."""

from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

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
    composed: DictConfig, overrides: list[str], axes: dict[str, Any], experiment: Optional[str], conf: Path
) -> dict[str, dict[str, Any]]:
    """``{key: {"value", "origin"}}`` for every dial that has a value."""
    raw = {group: OmegaConf.to_container(composed[group], resolve=False) for group in ("train", "scheduler")}
    typed = {override.lstrip("+~").split("=", 1)[0] for override in overrides}
    named = _experiment_keys(experiment, conf)
    found = {}
    for key in DIALS:
        value = OmegaConf.select(composed, key)
        if value is not None:
            size = composed.model.size_class
            origin = _origin(key, select(raw, key), typed, axes, named, size)
            found[key] = {"value": value, "origin": origin}
    return found


def _origin(key: str, raw: Any, typed: set[str], axes: dict[str, Any], named: set[str], size: str) -> str:
    group = key.split(".")[0]
    if key in axes or group in axes:
        return "sweep"
    if key in typed or group in typed:
        return "command line"
    if key in named:
        return "experiment"
    if "model.recommended" in str(raw):
        scaled = " x peft.learning_rate_factor" if "peft.learning_rate_factor" in str(raw) else ""
        return f"model size class {size}{scaled}"
    return "default"


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
