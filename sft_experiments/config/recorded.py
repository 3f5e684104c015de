"""A recorded run's config with changes: what ``sft train --from`` and ``sft eval`` start from. No torch here."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.config.hydra import Override, Request, composed, parse, register
from sft_experiments.config.load import to_config
from sft_experiments.config.mistakes import explain
from sft_experiments.config.validate import unread
from sft_experiments.errors import ConfigError, RunFolderError
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import read_record
from sft_experiments.schema import Config
from sft_experiments.values import as_override


def recorded_run(path: Path, overrides: Sequence[str] = ()) -> tuple[DictConfig, Request]:
    """The resolved config of a run folder with ``overrides`` on top, ready for ``plan_trial``.

    Values stay as they were recorded, whatever the defaults are today. ``key=value`` changes one of them;
    ``group=option`` takes the whole group from today's conf/, with the overrides for keys in it.
    The request tells how to get the same run without the folder. Raises ``RunFolderError`` when there is no run,
    ``ConfigError`` for a key or value that cannot be.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise RunFolderError(f"{path} is not a run folder: it has no {folder.config.name}")
    record = read_record(folder)
    register()
    changes = _parsed(overrides)
    groups = {change.key_or_group for change in changes if _is_group(change)}
    try:
        config: Any = completed(OmegaConf.load(folder.config))
        _replace_groups(
            config, groups, [text for text, change in zip(overrides, changes, strict=True) if _root(change) in groups]
        )
        for change in changes:
            if _root(change) not in groups:
                config = OmegaConf.merge(config, _nested(change.key_or_group, change.value()))
        assert isinstance(config, DictConfig)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    earlier = [*record.overrides, *(as_override(axis, value) for axis, value in record.axes.items())]
    replaced = {change.key_or_group for change in changes}
    kept = [text for text in earlier if (key := _key(text)) not in replaced and key.split(".")[0] not in groups]
    # What was read then may not be now: `--from RUN train.max_steps=60` of a run with a number of epochs.
    idle = {line.partition(":")[0] for line in unread(to_config(config), map(_key, kept))}
    kept = [text for text in kept if _key(text) not in idle]
    return config, Request([*kept, *overrides], config_dirs=record.config_dirs)


def completed(recorded: Any) -> DictConfig:
    """A recorded config under today's schema. Keys that did not exist when it was recorded get conf/'s default."""
    config = OmegaConf.merge(OmegaConf.structured(Config), recorded)
    assert isinstance(config, DictConfig)
    missing = OmegaConf.missing_keys(config)
    if missing:
        with composed([]) as composer:
            for key in sorted(missing):
                OmegaConf.update(config, key, OmegaConf.select(composer.master, key))
    return config


def _parsed(overrides: Sequence[str]) -> list[Override]:
    changes = parse(overrides)
    for text, change in zip(overrides, changes, strict=True):
        if change.is_delete() or change.is_sweep_override():
            raise ConfigError(f"{text}: a recorded run takes one value for each key, as key=value")
        if change.key_or_group == "sweep":
            raise ConfigError(f"{text}: a recorded run is one run; launch a sweep with sft sweep and its settings")
    return changes


def _is_group(change: Override) -> bool:
    """``scheduler=linear`` names an option of a group, ``name=final`` sets a value."""
    return any(field.name == change.key_or_group and is_dataclass(field.type) for field in fields(Config))


def _root(change: Override) -> str:
    return str(change.key_or_group).split(".")[0]


def _nested(key: str, value: Any) -> dict[str, Any]:
    """``a.b`` and 1 -> ``{"a": {"b": 1}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def _replace_groups(config: DictConfig, groups: set[str], overrides: list[str]) -> None:
    """Compose the named groups as for a new run and put them in place of the recorded ones."""
    if not groups:
        return
    with composed(overrides) as composer:
        for group in groups:
            config[group] = OmegaConf.to_object(composer.master[group])
