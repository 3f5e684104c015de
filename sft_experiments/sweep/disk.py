"""Disk: an estimate before anything starts, and weights only of the best trials."""

import shutil
from pathlib import Path

from sft_experiments.errors import ConfigError
from sft_experiments.plan.forecast import disk_bytes
from sft_experiments.plan.shape import shape_of
from sft_experiments.report.best import best_seed
from sft_experiments.report.collect import collect_runs
from sft_experiments.report.rank import compare_runs
from sft_experiments.run.folder import RunFolder
from sft_experiments.run.trial import Trial

GIB = 2**30


def check_disk(folder: Path, trials: list[Trial], parallel: int) -> None:
    """Raise ``ConfigError`` when the trials that are to run cannot fit: those that train at once, and those kept."""
    shapes = [(trial.config, shape_of(trial.config.model)) for trial in trials if not trial.folder.model.is_dir()]
    sizes = sorted((disk_bytes(config, shape) for config, shape in shapes if shape is not None), reverse=True)
    if not sizes:
        return
    keep = trials[0].config.sweep.keep_models
    keeps_all = keep < 0 or trials[0].config.sweep.early_stopping  # what waits at a rung keeps its checkpoint
    needed = sum(sizes if keeps_all else sizes[: parallel + keep])
    free = shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.is_dir())).free
    if needed > free:
        raise ConfigError(
            f"{folder}: the sweep needs up to {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; lower"
            f" sweep.keep_models={keep}, sweep.concurrent_trials={parallel} or train.save_total_limit, or name another"
            " output_dir"
        )


def drop_weights(folder: Path, keep: int) -> int:
    """Delete checkpoints and models of all completed trials but the best ``keep``; returns the bytes freed.

    The best are the best seeds of the best configurations. Records and metrics stay; -1 keeps everything.
    """
    if keep < 0:
        return 0
    comparison = compare_runs(collect_runs([folder]))
    kept = {best_seed(cell, comparison).folder.path for cell in comparison.cells[:keep]}
    ranked = [run.folder for cell in comparison.cells for run in cell.runs]
    return sum(remove_weights(run) for run in ranked if run.path not in kept)


def remove_weights(folder: RunFolder) -> int:
    """Delete checkpoints and model; returns the bytes freed."""
    freed = 0
    for part in (folder.checkpoints, folder.model):
        if part.is_dir():
            freed += sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
            shutil.rmtree(part)
    return freed
