"""Checkpoints that count only when they are complete: a marker is written last, resuming looks for it.

The Trainer writes a checkpoint file by file; a process killed in between leaves a folder that looks usable.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Optional

from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCALER_NAME, SCHEDULER_NAME

from sft_experiments.files import write_json_atomically

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)$")
ONLY_FOR_RESUMING = (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCALER_NAME, SCHEDULER_NAME, "rng_state*.pth")


def mark_complete(folder: Path) -> None:
    """Write the marker: the size in bytes of every file of the checkpoint."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    write_json_atomically(folder / MARKER, sizes)


def why_incomplete(folder: Path) -> Optional[str]:
    """None for a checkpoint that can be resumed from, else what is wrong with it."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "saving was interrupted"
    if not isinstance(sizes, dict) or not sizes:
        return f"{MARKER} lists no files"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def drop_training_state(root: Path) -> None:
    """Leave the weights of a finished run's checkpoints and delete what only resuming needs: two thirds of the bytes.

    The marker goes first, so that a run that is killed meanwhile does not take the rest for something to resume from.
    """
    for folder in checkpoint_folders(root):
        for pattern in (MARKER, *ONLY_FOR_RESUMING):
            for file in folder.glob(pattern):
                file.unlink()


def checkpoint_folders(root: Path) -> list[Path]:
    """All checkpoint folders, oldest first."""
    folders = [folder for folder in root.glob("checkpoint-*") if NAME.search(folder.name)]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    match = NAME.search(folder.name)
    assert match is not None, folder
    return int(match.group(1))


def newest_complete(root: Path) -> tuple[Optional[Path], list[str]]:
    """The newest complete checkpoint and a note for each broken one, which is set aside (renamed, not deleted)."""
    notes: list[str] = []
    for folder in reversed(checkpoint_folders(root)):
        reason = why_incomplete(folder)
        if reason is None:
            return folder, notes
        aside = set_aside(folder)
        notes.append(f"{folder.name} was set aside as {aside.name}: {reason}")
    return None, notes


def set_aside(folder: Path) -> Path:
    """Rename a broken checkpoint so that neither we nor the Trainer take it for a good one."""
    aside = folder.with_name(f"broken-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # from an earlier interruption at the same step
    return folder.rename(aside)
