"""The run folder: the interface between planning, training and comparing. One property per file."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sft_experiments.errors import RunFolderError

# What a launcher tells a worker in its environment: the process that waits for it.
LAUNCHER_VARIABLE = "SFT_LAUNCHER_PID"
SWEEP_FILE = "sweep.json"  # in the folder of a sweep, beside its run folders


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of one trial, ``outputs/<name>/<label>-<trial id>``. Creating the object touches nothing."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config (YAML); all a worker needs to run the trial again."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """What was derived before training: batch arithmetic, steps, origins of values, warnings (JSON)."""
        return self.path / "plan.json"

    @property
    def record(self) -> Path:
        """What happened: see runs/record.py (JSON)."""
        return self.path / "record.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per log event; the local source of truth, trackers are copies."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Sample generations, one JSON object per evaluation and prompt."""
        return self.path / "samples.jsonl"

    @property
    def data_report(self) -> Path:
        """What the data gate saw (JSON)."""
        return self.path / "data_report.json"

    @property
    def log(self) -> Path:
        """Everything the worker printed."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final model and tokenizer, loadable with from_pretrained."""
        return self.path / "model"

    @property
    def has_weights(self) -> bool:
        """Whether the final model is there: a sweep keeps those of its best ``sweep.keep_models`` trials."""
        return any((self.model / name).is_file() for name in ("config.json", "adapter_config.json"))

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """W&B writes its own `wandb/` folder below this one."""
        return self.path

    @property
    def lock(self) -> Path:
        """Held (flock) by the process that trains here."""
        return self.path / ".lock"


def find_run_folders(root: Path) -> list[RunFolder]:
    """Every run folder at or below ``root`` (those that hold a record), sorted by path.

    Does not look inside them (checkpoints and trackers hold thousands of files), nor into hidden folders, where
    superseded runs lie. Raises ``RunFolderError`` for a folder that cannot be read.
    """
    return sorted(map(RunFolder, _record_folders(root)), key=lambda folder: folder.path)


def _record_folders(root: Path) -> Iterator[Path]:
    pending = [str(root)]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except PermissionError as error:
            raise RunFolderError(f"{current} cannot be read: {error.strerror}") from error
        if "record.json" in found:
            yield Path(current)
        else:
            pending.extend(f"{current}/{name}" for name, is_folder in found.items() if is_folder and name[0] != ".")


ID = re.compile(r"(?:.*-)?[0-9a-f]{12}")  # a run folder's name ends with its trial's id


def find_by_id(root: Path, identity: str) -> list[RunFolder]:
    """The run folders of a trial anywhere below ``root``, by their names: no run folder is opened, so it takes no time.

    A folder that cannot be read has nothing for us: it may be somebody else's.
    """
    found, pending = [], [str(root)]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                names = [one.name for one in entries if one.name[0] != "." and one.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        found += [RunFolder(Path(current, name)) for name in names if ID.fullmatch(name) and name.endswith(identity)]
        pending += [f"{current}/{name}" for name in names if not ID.fullmatch(name)]
    return sorted(found, key=lambda folder: folder.path)


RANKS = ".ranks"


@dataclass(frozen=True)
class RankFolder(RunFolder):
    """The folder of a rank above 0."""

    @property
    def trial(self) -> RunFolder:
        return RunFolder(self.path.parent.parent)

    @property
    def log(self) -> Path:
        return self.trial.log

    @property
    def checkpoints(self) -> Path:
        return self.trial.checkpoints

    @property
    def model(self) -> Path:
        return self.trial.model


def folder_of(trial: RunFolder, rank: int) -> RunFolder:
    """Where a rank writes."""
    return RankFolder(trial.path / RANKS / str(rank)) if rank else trial


LOG_TAIL_LINES = 20


def log_tail(folder: RunFolder, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a run's log; empty when there is none."""
    if not folder.log.is_file():
        return []
    return folder.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
