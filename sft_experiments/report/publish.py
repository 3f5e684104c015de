"""The report of a sweep where people look for it: the page in its folder, its ranking and advice in W&B."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_experiments.advice.advise import advise
from sft_experiments.files import write_text_atomically
from sft_experiments.report.figures import map_axes
from sft_experiments.report.page import render_page
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.compare import load_comparison
from sft_experiments.results.rank import Comparison, compare_runs, why_unranked
from sft_experiments.results.rows import setting_names
from sft_experiments.results.text_formats import table_rows
from sft_experiments.schema import LoggerConfig


def publish_ranking(folder: Path, logger: LoggerConfig) -> list[str]:
    """Write the ranked table, the heat map and the advice of the sweep in ``folder``; notes say what became of it.

    Does nothing without W&B among the trackers. Publishing again updates the same run.
    """
    if "wandb" not in logger.trackers:
        return []
    from sft_experiments.monitor.trackers.wandb_sweep import publish_sweep  # slow: wandb, over a second

    comparison = compare_runs(collect_runs([folder]))
    names = setting_names(comparison)
    axes = [names[key] for key in map_axes(comparison) or ()]
    advice = [asdict(one) for one in advise(comparison)]
    return publish_sweep(logger, folder, folder.name, ranking_rows(comparison), axes, comparison.metric, advice)


def ranking_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per ranked configuration, best first, then one per unranked run with its status and reason."""
    headers, rows = table_rows(comparison)
    ranked = [dict(zip(headers, row, strict=True)) | {"status": "completed"} for row in rows]
    names = setting_names(comparison)
    unranked = [
        {names[key]: run.values.get(key) for key in comparison.keys}
        | {"status": run.record.status.value, "why": why_unranked(run, comparison.metric, comparison.direction)}
        for run in comparison.unranked
    ]
    return ranked + unranked


REPORT_FILE = "report.html"


def write_report(directories: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the page about all runs below ``directories`` and return its path, ``report.html`` in the first by default.

    Safe while trials run: records are read as they are, and the page is replaced whole. Raises ``RunFolderError``
    when there is no run to report on.
    """
    chosen = [directories] if isinstance(directories, Path) else list(directories)
    comparison = load_comparison(chosen)
    path = out or chosen[0] / REPORT_FILE
    title = ", ".join(dict.fromkeys(directory.resolve().name for directory in chosen))
    write_text_atomically(path, render_page(comparison, title))
    return path
