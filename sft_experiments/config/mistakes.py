"""Readable errors: what Hydra and OmegaConf found wrong, as one line with the key, the value and what is allowed."""

import re

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sft_experiments import errors
from sft_experiments.config.known_keys import free_mappings, known_hint, schema_keys, todays_name
from sft_experiments.errors import ConfigError, MissingDependencyError, SftError, nearest

CONFIG_NAME = "config"  # of the file that every run is composed from
LAUNCHER_EXTRAS = {"submitit": "slurm", "ray": "ray", "joblib": "joblib"}


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
