"""Callbacks of the Trainer: monitoring, evaluation, and checkpoints that count only when they are complete.

The Trainer writes a checkpoint file by file; a process killed in between leaves a folder that looks usable. A marker is
written last, and resuming looks for it.
"""

import json
import re
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Optional

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCALER_NAME, SCHEDULER_NAME

from sft_experiments.files import write_json_atomically
from sft_experiments.monitor.session import Monitor
from sft_experiments.training.attention import Collate, check_packing
from sft_experiments.training.process_group import largest, num_ranks, wait_for_all

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


class MonitorCallback(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """Belongs first in the list of callbacks. Logs after training (a last evaluation, the test set) are left alone."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._training = True
        self._monitor.train_begin(model, state.num_input_tokens_seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._monitor.step_end(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._training or not logs:
            return
        self._monitor.log(state.global_step, state.epoch or 0.0, logs)
        self._monitor.pause_end()
        if self._monitor.stopped:
            control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._monitor.alive()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._monitor.pause_end()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._monitor.pause_end()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        self._monitor.train_end()


class EvaluateAndSave(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Evaluate and save after the planned optimizer steps: always together, so that the best one can be restored."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = frozenset(steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            control.should_evaluate = control.should_save = True


class CheckPacking(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Before the first step packed documents are proven apart: on the device and in the number format that train."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        check_packing(model, self.collate)


class StopAtRung(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Ends the training at a planned evaluation, whose checkpoint it can go on from."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True


class StopOnSignal(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """SIGTERM and SIGINT end the training after the current optimizer step, with a checkpoint."""

    def __init__(self) -> None:
        self.signal: Optional[int] = None

    def install(self) -> None:
        """Take over both signals. A second one ends the process at once.

        Not one of several ranks: a scheduler signals every process, and the ranks' launcher passes it on once more.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def agree(self) -> Optional[int]:
        """The signal, when any rank has got one: all stop after the same step."""
        self.signal = largest(self.signal or 0) or None
        return self.signal

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if self.signal is not None and num_ranks() == 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agree() is not None:
            control.should_save = control.should_training_stop = True


class StopTogether(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """When a rule ends the training on one rank it ends on all. Belongs after the callbacks that decide."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = bool(largest(int(control.should_training_stop)))

    on_evaluate = on_log


class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """After each save: mark the checkpoint complete, then delete old ones but the newest few and the best.

    The Trainer's own ``save_total_limit`` deletes before our marker is written, which could leave no complete one.
    """

    def __init__(self, newest: int) -> None:
        self.newest = newest

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        wait_for_all()  # each rank has written its random state
        if not state.is_world_process_zero:
            return
        root = Path(str(args.output_dir))
        mark_complete(root / f"checkpoint-{state.global_step}")
        best = f"checkpoint-{state.best_global_step}" if state.best_global_step else None
        for folder in checkpoint_folders(root)[: -self.newest]:
            if folder.name != best:
                shutil.rmtree(folder)
