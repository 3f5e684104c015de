"""The sweep's ranking and advice in W&B, as a run of its own beside the trials."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_experiments.report.advice import advise
from sft_experiments.report.collect import collect_runs
from sft_experiments.report.figures import map_axes
from sft_experiments.report.formats import table_rows
from sft_experiments.report.rank import Comparison, compare_runs, why_unranked
from sft_experiments.report.rows import setting_names
from sft_experiments.schema import LoggerConfig


def publish_ranking(folder: Path, logger: LoggerConfig) -> list[str]:
    """Write the ranked table, the heat map and the advice of the sweep in ``folder``; notes say what became of it.

    Does nothing without W&B among the trackers. Publishing again updates the same run.
    """
    if "wandb" not in logger.trackers:
        return []
    from sft_experiments.monitor.sweep_summary import publish_sweep

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
