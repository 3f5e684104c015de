"""What happens when all trials of a sweep have ended: the winner's test score, disk, the summary in W&B, the report."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from sft_experiments.launch.start import worker_environment
from sft_experiments.launch.trial import Trial
from sft_experiments.report.publish import publish_ranking, write_report
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.compare import best_run, best_seed
from sft_experiments.results.rank import compare_runs
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Status, read_record
from sft_experiments.sweep.ledger import Sweep


def finish_sweep(sweep: Sweep, trials: list[Trial]) -> list[str]:
    """Do all of it; returns notes for the terminal. Nothing is done for a sweep without a completed trial."""
    completed = [trial for trial in trials if read_record(trial.folder).status is Status.completed]
    if not completed:
        return []
    config = completed[0].config
    notes = score_winner_on_test_data(sweep.folder, config.dataset.test_files, completed[0].plan.threads)
    drop_weights(sweep.folder, config.sweep.keep_models)
    notes += publish_ranking(sweep.folder, config.logger)
    write_report(sweep.folder)
    return notes


def score_winner_on_test_data(folder: Path, test_files: list[str], threads: int) -> list[str]:
    """Evaluate the best trial once on data that nothing was chosen by: the best of many is flattered by its own."""
    winner = best_run([folder])
    if not test_files or "test/loss" in winner.record.metrics or not winner.folder.model.is_dir():
        return []
    command = [sys.executable, "-m", "sft_experiments", "eval", "--json", str(winner.folder.path)]
    data = f"dataset.validation_files={json.dumps(test_files)}"
    done = subprocess.run([*command, data], capture_output=True, text=True, env=worker_environment(threads))
    if done.returncode != 0:
        return [f"the winner was not scored on dataset.test_files: {done.stderr.strip()}"]
    scores = json.loads(done.stdout)
    record = read_record(winner.folder)
    record.metrics |= {name.replace("eval/", "test/"): value for name, value in scores.items()}
    record.write(winner.folder)
    return [f"test/loss of the winner: {record.metrics['test/loss']:.4f} (validation {record.objective:.4f})"]


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
