"""The numbers behind the page's interactive charts, as one JSON value."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sft_experiments.results.collect import Run
from sft_experiments.results.curves import Curves, Event, points_per_run, thinned
from sft_experiments.results.rank import Comparison
from sft_experiments.results.rows import setting_names
from sft_experiments.results.settings import SEED_KEYS, sort_key
from sft_experiments.runs.metrics import (
    EVAL_LOSS,
    GRAD_NORM,
    LEARNING_RATE,
    TOKENS_PER_SECOND,
    TRAIN_LOSS,
    Shown,
    shown_in,
)
from sft_experiments.values import format_value

TRAIN_SERIES = {
    "loss": TRAIN_LOSS,
    "grad_norm": GRAD_NORM,
    "learning_rate": LEARNING_RATE,
    "throughput": TOKENS_PER_SECOND,
}


MOST_CURVES = 150  # runs drawn on a page; more are a carpet, and slow. The table holds them all
MEMORY_SERIES = ("memory/device_allocated_gib", "memory/host_rss_gib")  # the first that was logged


def chart_runs(comparison: Comparison, curves: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """One entry per run in ``curves``, in the order of ``comparison.runs``: label, colour and dash, curves, alerts.

    ``curves`` maps a run's folder to what it logged, for the runs that are drawn. Colours follow the first setting
    that varies, dashes the second.
    """
    limit = points_per_run(len(curves))
    ranks = {run.folder: cell.rank for cell in comparison.cells for run in cell.runs}
    classes = [_classes(comparison, key) for key in comparison.keys[:2]]
    entries = []
    for run in comparison.runs:
        logged = curves.get(str(run.folder.path))
        if logged is None:
            continue
        entries.append(
            {
                "label": run_label(run, comparison),
                "rank": ranks.get(run.folder),
                "status": run.record.status.value,
                "color": classes[0][format_value(run.values.get(comparison.keys[0]))] if classes else 0,
                "dash": classes[1][format_value(run.values.get(comparison.keys[1]))] if len(classes) > 1 else 0,
                "train": _train(logged, limit),
                "eval": _columns([event for event in logged.events if EVAL_LOSS in event], eval_series()),
                "alerts": _alerts(run, logged),
            }
        )
    return entries


def eval_series() -> dict[str, str]:
    """The curves of evaluations: their short names on the page, and the metrics."""
    return {one.name.removeprefix("eval/"): one.name for one in shown_in(Shown.chart, "eval/")}


def color_legend(comparison: Comparison) -> dict[str, Any]:
    """What colours and dashes stand for: the setting's name and its values in class order."""
    names = setting_names(comparison)
    return {
        role: {"name": names[key], "values": list(_classes(comparison, key))}
        for role, key in zip(("color", "dash"), comparison.keys, strict=False)
    }


def run_label(run: Run, comparison: Comparison) -> str:
    """Only what differs: ``2e-3 · 16``, with the seed where there are several; the folder's name when nothing does."""
    keys = [*comparison.keys, *_varying_seeds(comparison)]
    values = [f"seed {run.values.get(key)}" if key in SEED_KEYS else format_value(run.values.get(key)) for key in keys]
    return " · ".join(values) or run.name


def _varying_seeds(comparison: Comparison) -> list[str]:
    """The first of the seed keys that varies: model and data seeds are counted up together."""
    return [key for key in SEED_KEYS if len({str(run.values.get(key)) for run in comparison.runs}) > 1][:1]


def _classes(comparison: Comparison, key: str) -> dict[str, int]:
    values = sorted({run.values.get(key) for run in comparison.runs if _hashable(run.values.get(key))}, key=sort_key)
    texts = [format_value(value) for value in values]
    texts += [format_value(run.values.get(key)) for run in comparison.runs]
    return {text: index for index, text in enumerate(dict.fromkeys(texts))}


def _hashable(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _train(logged: Curves, limit: int) -> dict[str, list[Any]]:
    events = [event for event in logged.events if TRAIN_LOSS in event or GRAD_NORM in event]
    events = thinned(events, limit, (TRAIN_LOSS, GRAD_NORM))
    memory = next((name for name in MEMORY_SERIES if any(name in event for event in events)), None)
    return _columns(events, TRAIN_SERIES | ({"memory": memory} if memory else {}))


def _columns(events: Sequence[Event], series: Mapping[str, str]) -> dict[str, list[Any]]:
    """Step, tokens and the series that were logged, as columns of equal length; a gap is null."""
    columns: dict[str, list[Any]] = {
        "step": [event["step"] for event in events],
        "tokens": [event.get("tokens", 0) for event in events],
    }
    for short, name in series.items():
        if any(name in event for event in events):
            columns[short] = [rounded(event.get(name)) for event in events]
    return columns


def _alerts(run: Run, logged: Curves) -> list[dict[str, Any]]:
    alerts = []
    for alert in run.record.alerts:
        step = alert.get("step")
        if isinstance(step, int | float):
            message = f"{alert.get('message', '')}" + (f" (x{alert['count']})" if alert.get("count", 1) > 1 else "")
            where = {"step": step, "tokens": round(logged.tokens_at(step))}
            alerts.append(where | {"rule": str(alert.get("rule")), "message": message})
    return alerts


def rounded(value: Any) -> float | None:
    """Five significant digits: finer than a screen, and a third of the bytes. JSON has no NaN: null."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")
