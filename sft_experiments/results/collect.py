"""Find run folders below some directories and read their records, tolerating broken ones."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sft_experiments.errors import RunFolderError
from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.identity import decides
from sft_experiments.runs.plan_file import Plan, find_plan
from sft_experiments.runs.record import Record, read_record
from sft_experiments.values import flatten


@dataclass(frozen=True)
class Run:
    """One trial: its folder, its record, and its config as ``{"train.learning_rate": 0.002}``."""

    folder: RunFolder
    record: Record
    values: dict[str, Any]

    @cached_property
    def deciding(self) -> dict[str, Any]:
        """The values that take part in the result, seeds included; of a group that was swept, what it sets."""
        groups = self.record.axes.keys() - flatten(self.record.config).keys()
        return {key: value for key, value in self.values.items() if key not in groups and decides(key, self.values)}

    @cached_property
    def axes(self) -> dict[str, Any]:
        """The axes of its sweep with its place on each, by the keys of ``values``.

        A whole group (``peft=none,lora``) stands there by its own name, ``+key`` without its sign, and each key of a
        mapping (``train={...},{...}``) for itself.
        """
        found: dict[str, Any] = {}
        for axis, value in self.record.axes.items():
            found |= flatten({axis.lstrip("+"): value}) if isinstance(value, dict) else {axis.lstrip("+"): value}
        return found

    @property
    def name(self) -> str:
        return self.folder.path.name

    @cached_property
    def plan(self) -> Plan | None:
        """What was derived for the run; None when its plan.json cannot be read."""
        return find_plan(self.folder)

    @property
    def seeds(self) -> tuple[str, str]:
        """What makes two runs of one configuration independent: model and data order seeds."""
        return str(self.values.get("train.seed")), str(self.values.get("train.data_seed"))


@dataclass(frozen=True)
class Collection:
    """Runs sorted by path, and one line for each record that could not be read."""

    runs: list[Run]
    problems: list[str]


def collect_runs(directories: Iterable[Path]) -> Collection:
    """Read every record at or below ``directories``; a folder reached twice counts once.

    A broken record becomes a line in ``problems``. Raises ``RunFolderError`` for a directory that is missing
    or that holds no record at all.
    """
    paths: set[Path] = set()
    for directory in directories:
        if not directory.is_dir():
            raise RunFolderError(f"{directory} is not a folder; give a sweep's folder or a run's folder")
        found = {folder.path for folder in find_run_folders(directory.resolve())}
        if not found:
            raise RunFolderError(f"{directory} holds no run: no record.json at or below it")
        paths |= found
    runs, problems = [], []
    for path in sorted(paths):
        try:
            runs.append(read_run(RunFolder(path)))
        except RunFolderError as error:
            problems.append(str(error))
    return Collection(runs, problems)


def read_run(folder: RunFolder) -> Run:
    """The run in ``folder``. Raises ``RunFolderError`` naming the file when its record cannot be used."""
    try:
        record = read_record(folder)
    except (TypeError, ValueError, KeyError) as error:  # well-formed JSON whose fields are not a record's
        raise RunFolderError(f"{folder.record} is not a usable record: {error}") from error
    if fault := _fault(record):
        raise RunFolderError(f"{folder.record} is not a usable record: {fault}")
    run = Run(folder, record, flatten(record.config))
    for axis, value in run.axes.items():
        run.values.setdefault(axis, value)  # a group is no key of the config
    return run


def _fault(record: Record) -> str | None:
    """What has the wrong shape: a record edited by hand must not break the table of all others."""
    shapes: list[tuple[str, type | tuple[type, ...]]] = [
        *((name, dict) for name in ("axes", "config", "metrics", "timings", "environment", "fingerprints")),
        *((name, list) for name in ("overrides", "alerts", "notes", "config_dirs")),
        *((name, str) for name in ("trial_id", "name", "label", "objective_metric", "objective_direction")),
        ("launched_in", (str, type(None))),
    ]
    wrong = [name for name, shape in shapes if not isinstance(getattr(record, name), shape)]
    if wrong:
        return f"{wrong[0]} is {getattr(record, wrong[0])!r}"
    members = (
        ("alerts", record.alerts, dict),
        ("overrides", record.overrides, str),
        ("config_dirs", record.config_dirs, str),
    )
    wrong = [name for name, values, shape in members if not all(isinstance(value, shape) for value in values)]
    wrong += [name for name in ("fingerprints",) if not all(isinstance(v, str) for v in record.fingerprints.values())]
    return f"{wrong[0]} holds something else than it should" if wrong else None


def number(values: Mapping[str, Any], name: str) -> float | None:
    """A finite number by name; None for anything else."""
    value = values.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None
