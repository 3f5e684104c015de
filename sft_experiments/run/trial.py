"""One trial before it runs: composed, checked, planned and given its id and folder."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from sft_experiments.compose import conf_dir, to_config, to_plain
from sft_experiments.monitor.secrets import redact, redact_text
from sft_experiments.plan.build import Plan, build_plan
from sft_experiments.plan.check import check_config
from sft_experiments.plan.facts import check_warmup
from sft_experiments.plan.origin import values_with_origin
from sft_experiments.report.number_format import format_value
from sft_experiments.run.files import write_json_atomically, write_text_atomically
from sft_experiments.run.folder import RunFolder
from sft_experiments.run.identity import fingerprints, trial_id
from sft_experiments.run.record import Record, Status, read_record, utc_now
from sft_experiments.schema import Config

LONGEST_LABEL = 80  # characters of a folder name
SUPERSEDED = ".superseded"


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the config itself."""

    overrides: list[str] = field(default_factory=list)  # as typed, without sweep axes
    axes: dict[str, Any] = field(default_factory=dict)  # axis key -> this trial's value
    experiment: Optional[str] = None
    root: Optional[Path] = None  # the sweep's folder; None: a single run
    concurrent_trials: int = 1


@dataclass(frozen=True)
class Trial:
    """A trial that can be run: everything a worker needs is in these fields, and in the folder once written."""

    config: Config
    plan: Plan
    record: Record
    folder: RunFolder

    @property
    def id(self) -> str:
        return self.record.trial_id

    def write(self) -> None:
        """Write config.yaml, plan.json and a pending record that continues an earlier one."""
        earlier = self.recorded()
        if earlier is not None:
            self.record.attempts, self.record.created_at = earlier.attempts, earlier.created_at
            self.record.timings = earlier.timings
            self.record.notes = list(dict.fromkeys([*earlier.notes, *self.record.notes]))
        write_text_atomically(self.folder.config, OmegaConf.to_yaml(OmegaConf.create(self.record.config)))
        write_json_atomically(self.folder.plan, self.record.plan)
        self.record.write(self.folder)

    def start_over(self) -> None:
        """For rerun=true: move what an earlier launch left into a hidden folder beside it. Nothing is overwritten."""
        if self.config.rerun and self.folder.record.is_file():
            kept = self.folder.path.parent / SUPERSEDED
            kept.mkdir(exist_ok=True)
            number = sum(1 for _ in kept.glob(f"*{self.id}.*")) + 1
            self.folder.path.rename(kept / f"{self.folder.path.name}.{number}")

    def recorded(self) -> Optional[Record]:
        """What an earlier launch of the same trial left, if anything."""
        return read_record(self.folder) if self.folder.record.is_file() else None

    def needs_running(self, retry_failed: bool) -> bool:
        """In a sweep, completed trials never run again; failed ones only when asked; all others go on."""
        earlier = self.recorded()
        if earlier is None or self.config.rerun:
            return True
        return not earlier.status.is_final or (earlier.status.is_failure and retry_failed)


def plan_trial(composed: DictConfig, request: Request) -> Trial:
    """Check a composed config, derive its plan and its id. Raises ``ConfigError`` or ``DataError``; writes nothing."""
    config = to_config(composed)
    check_config(config)
    check_warmup(config)
    plan = build_plan(config, request.concurrent_trials)
    content = fingerprints(config)
    identity = trial_id(config, plan.precision.value, content)
    origins = values_with_origin(composed, config, request.overrides, request.axes, request.experiment, conf_dir())
    label = label_of(request.axes)
    record = Record(
        trial_id=identity,
        name=config.name,
        label=label,
        status=Status.pending,
        created_at=utc_now(),
        overrides=redact(request.overrides),
        axes=request.axes,
        sweep=request.root.name if request.root else None,
        command=redact_text(reproduce_command(request)),
        config=redact(to_plain(config)),
        plan={"trial_id": identity, **plan.as_dict(), "values": origins},
        objective_metric=config.objective.metric,
        objective_direction=config.objective.direction.value,
        fingerprints=content,
    )
    root = request.root or Path(config.output_dir) / folder_name(config.name)
    return Trial(config, plan, record, trial_folder(root, label, identity))


def trial_folder(root: Path, label: str, identity: str) -> RunFolder:
    """The folder of a trial: an existing one with this id whatever its label, else ``<label>-<id>``."""
    existing = sorted(root.glob(f"*{identity}")) if root.is_dir() else []
    if existing:
        return RunFolder(existing[0])
    name = folder_name(label)[:LONGEST_LABEL]
    return RunFolder(root / (f"{name}-{identity}" if name else identity))


def label_of(axes: dict[str, Any]) -> str:
    """What differs from the neighbours, by the last part of each key: ``learning_rate=2e-3 seed=1``."""
    return " ".join(f"{key.rsplit('.', 1)[-1]}={format_value(value)}" for key, value in axes.items())


def folder_name(text: str) -> str:
    """A name that needs no quoting in a shell."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_.")


def reproduce_command(request: Request) -> str:
    """A shell command that runs this trial by itself."""
    of_the_run = [override for override in request.overrides if not override.startswith("sweep")]
    cell = [f"{key}={value}" for key, value in request.axes.items()]
    return shlex.join(["sft", "train", *of_the_run, *cell])
