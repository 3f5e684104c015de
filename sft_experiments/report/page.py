"""The report page: everything it shows, put into one self-contained HTML text.

The same run folders give the same bytes: nothing depends on the clock, on chance, or on the order of a directory.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from sft_experiments.advice.advise import advise
from sft_experiments.advice.from_grid import learning_rate_optimum
from sft_experiments.errors import MissingDependencyError
from sft_experiments.report.figures import heat_map, profile
from sft_experiments.report.page_data import MOST_CURVES, chart_runs, color_legend, run_label
from sft_experiments.report.sections import (
    best_config,
    data_sections,
    environment,
    failures,
    sample_table,
    setting_differences,
)
from sft_experiments.report.words import best_score, best_settings, is_unfinished, summary_sentences
from sft_experiments.results.collect import Run
from sft_experiments.results.compare import best_seed
from sft_experiments.results.curves import Curves, read_curves
from sft_experiments.results.rank import Comparison, why_unranked
from sft_experiments.results.recipes import reproduce_command, use_command
from sft_experiments.results.rows import Column, build_table
from sft_experiments.results.settings import sort_key
from sft_experiments.results.table import footnotes, heading
from sft_experiments.runs.metrics import EVAL_LOSS, Shown, shown_in
from sft_experiments.values import format_value


def render_page(comparison: Comparison, title: str) -> str:
    """The whole page as HTML. Raises ``MissingDependencyError`` when the plotting library is not installed."""
    import jinja2  # slow: jinja2, 0.15 s; only whoever writes a page waits

    curves = {str(run.folder.path): read_curves(run.folder.metrics) for run in drawn_runs(comparison)}
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("sft_experiments.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("page.html.j2")
    return template.render(_content(comparison, title, curves))


def _content(comparison: Comparison, title: str, curves: dict[str, Curves]) -> dict[str, Any]:
    best = best_seed(comparison.best, comparison) if comparison.best else None
    runs = chart_runs(comparison, curves)
    columns = build_table(comparison).columns
    figures = {"heat_map": heat_map(comparison), "profile": profile(comparison, learning_rate_optimum(comparison))}
    data = {"runs": runs, "figures": figures, "legend": color_legend(comparison), "metric": comparison.metric}
    return {
        "title": title,
        "comparison": comparison,
        "num_configurations": len(comparison.cells),
        "unfinished": is_unfinished(comparison),
        "best_settings": best_settings(comparison),
        "best_score": best_score(comparison),
        "sentences": summary_sentences(comparison),
        "notes": footnotes(comparison)[1:] if comparison.cells else footnotes(comparison),
        "advice": advise(comparison),
        "reproduce": reproduce_command(best) if best else None,
        "use": use_command(best) if best else None,
        "has_model": best is not None and best.folder.has_weights,
        "best_label": run_label(best, comparison) if best else None,
        "runs": runs,
        "figures": figures,
        "legend": data["legend"],
        "logged": _logged(runs),
        "task_metrics": [one for one in shown_in(Shown.chart, "eval/") if one.name != EVAL_LOSS],
        "headers": _headers(columns),
        "rows": _table_rows(comparison, columns),
        "samples": sample_table(comparison),
        "differences": setting_differences(comparison),
        "best_config": best_config(best) if best else [],
        "data_reports": data_sections(comparison),
        "failures": failures(comparison),
        "environment": environment(comparison),
        "data_json": script_json(data),
        "style": _resource("style.css"),
        "scripts": [_resource("charts.js"), _resource("page.js")],
        "plotting_library": plotting_library(),
    }


def drawn_runs(comparison: Comparison) -> list[Run]:
    """The best runs, and all with an alert, as far as a page can show them."""
    runs = comparison.runs
    chosen = sorted(runs[MOST_CURVES:], key=lambda run: not run.record.alerts)[: MOST_CURVES // 3]
    return runs if len(runs) <= MOST_CURVES else runs[: MOST_CURVES - len(chosen)] + chosen


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def plotting_library() -> str:
    """plotly.js as shipped in the plotly package, read without importing its Python half (0.5 s)."""
    try:
        return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MissingDependencyError("the report needs plotly: pip install plotly") from error


def _logged(runs: list[dict[str, Any]]) -> set[str]:
    """Which series any run has, so that no empty chart is shown."""
    return {f"{part}/{name}" for run in runs for part in ("train", "eval") for name in run[part]}


def _headers(columns: list[Column]) -> list[tuple[str, bool]]:
    return [*((heading(column.name), column.numeric) for column in columns), ("folder", False)]


def _table_rows(comparison: Comparison, columns: list[Column]) -> list[dict[str, Any]]:
    """Rows of (text, value to sort by) cells: ranked configurations, then unranked runs with their status."""
    rows = []
    for cell in comparison.cells:
        cells = [(column.text(column.value(cell)), _sortable(column.value(cell))) for column in columns]
        folder = cell.name if len(cell.runs) == 1 else f"{cell.name} and {len(cell.runs) - 1} more"
        title = ", ".join(run.name for run in cell.runs)
        kind = "best" if cell.rank == 1 else "ranked"
        rows.append({"kind": kind, "title": title, "cells": [*cells, (folder, folder)]})
    settings = {column.name: key for column, key in zip(columns[1:], comparison.keys, strict=False)}
    for run in comparison.unranked:
        known = {name: run.values.get(key) for name, key in settings.items()} | {"verdict": run.record.status.value}
        values = [known.get(column.name) for column in columns]
        cells = [("" if value is None else format_value(value), _sortable(value)) for value in values]
        title = why_unranked(run, comparison.metric, comparison.direction)
        kind = "failed" if run.record.status.is_failure else "waiting"
        rows.append({"kind": kind, "title": title, "cells": [*cells, (run.name, run.name)]})
    return rows


def _sortable(value: Any) -> str:
    """Numbers in full precision, texts as shown, nothing for a missing value (sorted last)."""
    if value is None:
        return ""
    return repr(value) if sort_key(value)[0] == 0 else format_value(value)


def _resource(name: str) -> str:
    return (files("sft_experiments.report") / "template" / name).read_text(encoding="utf-8")
