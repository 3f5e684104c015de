"""The sweep's own run in W&B: the ranked table, and the objective as a heat map over two axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure, Heatmap
from wandb import Plotly, Table

from sft_experiments.monitor.trackers.register import Trackers
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.monitor.trackers.wandb_tracker import WandbTracker
from sft_experiments.schema import LoggerConfig
from sft_experiments.secrets import redact

Row = Mapping[str, Any]


def publish_sweep(
    logger: LoggerConfig,
    folder: Path,
    sweep: str,
    rows: Sequence[Row],
    axes: Sequence[str],
    metric: str,
    advice: Sequence[Row] = (),
) -> list[str]:
    """Write the sweep's run, when W&B is among the trackers; the notes say what became of it. Never raises.

    ``folder``: the sweep's. ``rows``: one per trial, best first, with the axes, ``metric`` and whatever else a table
    should show; trials without a value come last. ``advice``: one per piece of advice, the surest first. The same
    sweep published again is the same run.
    """
    if "wandb" not in logger.trackers:
        return []
    tracker = SweepRun(logger, folder, [dict(row) for row in rows], list(axes), metric, list(advice))
    trackers = Trackers({"wandb": lambda: tracker}, logger.finish_seconds)
    trackers.start(RunIdentity(f"sweep-{sweep}", sweep, f"{sweep} (ranking)", sweep, resumed_step=0), {})
    return trackers.finish("completed", _best(rows, metric))


class SweepRun(WandbTracker):
    """A W&B run that holds tables instead of curves."""

    job_type = "sweep"

    def __init__(
        self, logger: LoggerConfig, folder: Path, rows: list[Row], axes: list[str], metric: str, advice: list[Row]
    ) -> None:
        super().__init__(logger.wandb, folder, logger.finish_seconds)
        self._table = redact(rows)
        self._advice = redact(advice)
        self._axes = axes
        self._metric = metric

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        content: dict[str, Any] = {"ranking": _table(self._table)}
        if self._advice:
            content["advice"] = _table(self._advice)
        if len(self._axes) > 1:
            content["heat_map"] = Plotly(_heat_map(self._table, self._axes[0], self._axes[1], self._metric))
        self._run.log(content)
        super().finish(status, summary)


def _table(rows: list[Row]) -> Any:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows], allow_mixed_types=True)


def _heat_map(rows: list[Row], x_axis: str, y_axis: str, metric: str) -> Any:
    """The best value of each place; places without a value stay empty."""
    best: dict[tuple[str, str], float] = {}
    for row in rows:  # best first
        if row.get(metric) is not None:
            best.setdefault((str(row[x_axis]), str(row[y_axis])), row[metric])
    xs, ys = _ordered(rows, x_axis), _ordered(rows, y_axis)
    values = [[best.get((x, y)) for x in xs] for y in ys]
    heat = Heatmap(x=xs, y=ys, z=values, texttemplate="%{z:.4g}", colorbar={"title": metric})
    layout = {"xaxis": {"title": x_axis, "type": "category"}, "yaxis": {"title": y_axis, "type": "category"}}
    return Figure(data=[heat], layout=layout)


def _ordered(rows: list[Row], axis: str) -> list[str]:
    """The values of an axis as text, numbers in their order."""
    values = {row[axis] for row in rows if axis in row}
    return [str(value) for value in sorted(values, key=lambda value: (isinstance(value, str), value))]


def _best(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """The winning row, for the run's summary."""
    ranked = [row for row in rows if row.get(metric) is not None]
    best = {f"best/{name}": value for name, value in ranked[0].items()} if ranked else {}
    return {"trials": len(rows), "trials_ranked": len(ranked), **best}
