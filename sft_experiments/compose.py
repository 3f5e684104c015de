"""From configuration files and the command line to a checked ``Config``: registration, resolvers, readable errors."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
)

from sft_experiments import errors
from sft_experiments.errors import ConfigError, MissingDependencyError, SftError, nearest
from sft_experiments.plan.known_keys import KNOWN_KEYS, known_hint
from sft_experiments.plan.old_names import todays_name
from sft_experiments.plan.size import recommended_value, size_class_of
from sft_experiments.schema import Config, HealthRuleConfig

CONFIG_NAME = "config"
LAUNCHER_EXTRAS = {"submitit": "slurm", "ray": "ray", "joblib": "joblib"}


def conf_dir() -> Path:
    """The folder of the shipped configuration: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register() -> None:
    """Make the schema and the resolvers of conf/ known to Hydra and OmegaConf. Harmless to call twice."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("scaled", scaled, replace=True)
    OmegaConf.register_new_resolver("last_part", lambda name: str(name).rstrip("/").rsplit("/", 1)[-1], replace=True)
    OmegaConf.register_new_resolver("size_class", size_class_of, replace=True)
    OmegaConf.register_new_resolver(
        "recommended", lambda size, key: recommended_value(conf_dir(), size, key), replace=True
    )


def scaled(value: Any, factor: float) -> Any:
    """``value`` or each of its items times ``factor``, without the noise of binary fractions (2e-5 x 10 = 2e-4)."""
    if isinstance(value, (int, float)):
        return float(f"{value * factor:.12g}")
    return [scaled(item, factor) for item in value]


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
    except (OmegaConfBaseException, HydraException) as error:
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


def schema_keys(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key that the schema knows, for "did you mean"."""
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        yield key
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from schema_keys(field.type, f"{key}.")


def explain(error: Exception) -> SftError:
    """One line for a mistake that Hydra or OmegaConf found: the key, the value, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(_explain_unreadable(error))
    inner = error.__cause__ or error.__context__  # Hydra wraps what OmegaConf found
    cause = inner if isinstance(inner, OmegaConfBaseException) and inner.full_key else error  # formatted ones only
    if not isinstance(cause, OmegaConfBaseException):
        return ConfigError(" ".join(str(error).split()))
    message = str(cause).splitlines()[0]
    ours = re.match(r"(\w+) raised while resolving interpolation: (.*)", message)
    if ours and issubclass(getattr(errors, ours.group(1), Exception), SftError):
        raised: type[SftError] = getattr(errors, ours.group(1))  # by one of our resolvers
        return raised(ours.group(2))
    return ConfigError(_explain_omegaconf(cause, message, str(error)))


def _explain_unreadable(error: OverrideParseException) -> str:
    """An argument outside of Hydra's grammar: mostly a path with '=' in it, such as a run folder's, without quotes."""
    key, _, value = error.override.partition("=")
    if not value:
        return f"{error.override}: settings are given as key=value"
    if "=" in value and value[0] not in "[{'\"":
        return f"{error.override}: a value with '=' in it needs quotes of its own: \"{key}='{value}'\""
    return f"{error.override}: cannot be read; text with '=', brackets or quotes in it needs quotes of its own"


def _missing_option(error: MissingConfigException) -> SftError:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or [])
    extra = next((extra for prefix, extra in LAUNCHER_EXTRAS.items() if option.startswith(prefix)), None)
    if group == "hydra/launcher" and extra is not None:
        return MissingDependencyError(f"{group}={option} needs pip install 'sft-experiments[{extra}]'")
    return ConfigError(f"{group}={option}: no such option{nearest(option, options)}; allowed: {', '.join(options)}")


def _explain_omegaconf(cause: OmegaConfBaseException, message: str, outer: str) -> str:
    key = cause.full_key or ""
    where = re.match(r"In '([^']+)'", outer)
    prefix = f"{where.group(1)}.yaml: " if where and where.group(1) != CONFIG_NAME else ""
    missing = re.search(r"Missing mandatory value: (\S+)", message)
    if missing:
        return f"{missing.group(1)} is required: give it as {missing.group(1)}=..."
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        return f"{prefix}{key}: no such key{_hint(key)}"
    if "is not a subclass of HealthRuleConfig" in message:  # of a rule that `+` made up; OmegaConf names it alone
        return f"monitor.rules.{key}: no such rule{known_hint(f'monitor.rules.{key}')}"
    value = re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", message)
    if value:
        return f"{prefix}{key}={value.group(1)}: must be of type {value.group(2).lower()}"
    if message.endswith("is not a ListConfig, list or tuple."):
        return f"{prefix}{key}: must be a list: '{key}=[...]'"
    return f"{prefix}{key + ': ' if key else ''}{message}"


def _hint(key: str) -> str:
    """How to write a key that does not exist: with a plus sign, under today's name, or the nearest known one."""
    parent = key.rpartition(".")[0]
    if parent in free_mappings():
        return f"; to add one to {parent}, write +{key}=..."
    known = known_hint(key)
    if known is not None:
        return known
    today = todays_name(key)
    if today is not None:
        return f"; today: {today}"
    return nearest(key, list(schema_keys()))


def free_mappings(schema: type = Config, prefix: str = "") -> set[str]:
    """The dotted keys that hold a mapping with keys of the user's own, like train.extra."""
    found = set()
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type):
            found |= free_mappings(field.type, f"{prefix}{field.name}.")
        elif str(field.type).startswith("dict[") and f"{prefix}{field.name}" not in KNOWN_KEYS:
            found.add(f"{prefix}{field.name}")
    return found
