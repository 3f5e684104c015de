"""From a composed or recorded config to a checked ``Config``, to plain values, and to config.yaml and back."""

import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.config.mistakes import explain
from sft_experiments.errors import ConfigError, first_line
from sft_experiments.files import write_text_atomically
from sft_experiments.runs.folder import RunFolder
from sft_experiments.schema import Config, HealthRuleConfig


def to_config(composed: DictConfig) -> Config:
    """Resolve every interpolation and check every key and value. Raises ``ConfigError`` for the first wrong one."""
    try:
        values = {str(key): _resolved(composed, str(key)) for key in composed if key != "hydra"}
    except OmegaConfBaseException:
        values = {}
    if _is_checked(Config, values):  # composed with the schema: every value has been checked already
        return Config(**values)
    ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        plain = as_mapping(ours, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    return from_plain(plain)


def _resolved(composed: DictConfig, key: str) -> Any:
    """The value of a top-level key, groups as objects of their schema class."""
    value = composed[key]
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def _is_checked(schema: type, values: dict[Any, Any]) -> bool:
    """Whether the groups are objects of the schema's classes, without a key that `+key=value` may have added."""
    kinds = {field.name: field.type for field in fields(schema)}
    if set(values) != set(kinds):
        return False
    groups: list[tuple[type, Any]] = [
        (kind, values[name]) for name, kind in kinds.items() if isinstance(kind, type) and is_dataclass(kind)
    ]
    mappings = [value for value in values.values() if isinstance(value, dict)]
    groups += [(HealthRuleConfig, item) for mapping in mappings for item in mapping.values() if is_dataclass(item)]
    return all(isinstance(group, kind) and _is_checked(kind, vars(group)) for kind, group in groups)


def to_plain(config: Config) -> dict[str, Any]:
    """The config as nested plain values, enums as their names: what config.yaml and trackers hold."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_mapping(node: Any, **options: Any) -> dict[str, Any]:
    """An OmegaConf mapping as a plain one, resolved; ``options`` are those of OmegaConf.to_container."""
    container = OmegaConf.to_container(node, **{"resolve": True, **options})
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def from_plain(values: dict[str, Any]) -> Config:
    """The inverse of ``to_plain``; unknown keys and wrong types raise ``ConfigError``."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, Config)
    return config


def read_config(folder: RunFolder) -> Config:
    """The config that a run folder holds, checked against this version's schema."""
    return from_plain(as_mapping(OmegaConf.load(folder.config)))


def write_config(folder: RunFolder, plain: dict[str, Any]) -> None:
    """Write config.yaml: all that a worker needs to know of what was asked for."""
    write_text_atomically(folder.config, OmegaConf.to_yaml(OmegaConf.create(plain)))


def load_plugins(names: Iterable[str]) -> None:
    """Import each module, once per process. Raises ``ConfigError`` when one cannot be imported.

    They are looked for where Python looks, and then in the current directory, so that no plugin hides a library.
    """
    for name in names:
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        try:
            import_module(name)  # slow: what the user's module imports
        except ConfigError as error:
            raise ConfigError(f"plugins: {name}: {error}") from error
        except Exception as error:  # it is not our code: whatever it raises is a mistake in a setting
            raise ConfigError(f"plugins: {name}: {type(error).__name__}: {first_line(error)}") from error
