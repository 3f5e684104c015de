"""The run to go on with."""

from collections.abc import Iterable
from pathlib import Path

from sft_experiments.errors import RunFolderError
from sft_experiments.report.collect import Run, collect_runs
from sft_experiments.report.rank import Cell, Comparison, compare_runs


def best_run(directories: Iterable[Path]) -> Run:
    """The best run of the best configuration (its best seed). Raises ``RunFolderError`` when nothing is ranked."""
    comparison = compare_runs(collect_runs(directories))
    if comparison.best is None:
        raise RunFolderError(f"none of {len(comparison.unranked)} runs completed with a finite objective")
    return best_seed(comparison.best, comparison)


def best_seed(cell: Cell, comparison: Comparison) -> Run:
    """Among a configuration's seeds, the run with the best objective."""
    return min(cell.runs, key=comparison.run_loss)
