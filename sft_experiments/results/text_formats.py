"""The ranked table for other programs: Markdown, CSV, JSON. Full precision in CSV and JSON."""

import csv
import io
import json
import math
from typing import Any

from sft_experiments.results.rank import Comparison, why_unranked
from sft_experiments.results.rows import Table, build_table, setting_names
from sft_experiments.results.table import footnotes


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Headers and plain values of the ranked rows, for a tracker's own table."""
    table = build_table(comparison)
    return [column.name for column in table.columns], [
        [column.value(cell) for column in table.columns] for cell in table.cells
    ]


def to_markdown(table: Table) -> str:
    """A Markdown table, a second one for what is not ranked, and the notes."""
    headers = [column.name for column in table.columns]
    rows = [[column.text(column.value(cell)) for column in table.columns] for cell in table.cells]
    parts = [markdown_table(headers, rows, [column.numeric for column in table.columns])] if rows else []
    unranked = _unranked(table)
    if unranked:
        headers = list(unranked[0])
        cells = [["" if value is None else str(value) for value in row.values()] for row in unranked]
        parts.append("Not ranked:\n\n" + markdown_table(headers, cells, [False] * len(headers)))
    parts += [_markdown_text(line) for line in footnotes(table.comparison)]
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """One line per ranked configuration, then one per unranked run, with ``status`` and ``folder`` last."""
    extra = ["status", "why", "folder"]
    headers = [column.name for column in table.columns]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*headers, *(name for name in extra if name not in headers)], extrasaction="ignore")
    writer.writeheader()
    for cell in table.cells:
        row = {column.name: column.value(cell) for column in table.columns}
        writer.writerow({"status": "completed", "folder": cell.name} | row)
    writer.writerows(_unranked(table))
    return buffer.getvalue()


def to_json(table: Table) -> str:
    """Everything in the table and below it; each ranked row lists its run folders."""
    comparison = table.comparison
    noise = comparison.noise
    content = {
        "metric": comparison.metric,
        "direction": comparison.direction,
        "noise": noise
        and {"standard_deviation": noise.standard_deviation, "degrees_of_freedom": noise.degrees_of_freedom},
        "rows": [
            {column.name: column.value(cell) for column in table.columns}
            | {"within_noise_of_best": cell.within_noise, "folders": [str(run.folder.path) for run in cell.runs]}
            for cell in table.cells
        ],
        "unranked": _unranked(table),
        "notes": comparison.notes,
        "problems": comparison.problems,
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def _unranked(table: Table) -> list[dict[str, Any]]:
    comparison = table.comparison
    names = setting_names(comparison)
    return [
        {"status": run.record.status.value}
        | {names[key]: run.values.get(key) for key in comparison.keys}
        | {"why": why_unranked(run, comparison.metric, comparison.direction), "folder": run.name}
        for run in comparison.unranked
    ]


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become texts."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def markdown_table(headers: list[str], rows: list[list[str]], numeric: list[bool]) -> str:
    """A table with right-aligned numeric columns; texts cannot break out of their cells."""
    lines = [headers, ["--:" if right else "---" for right in numeric], *rows]
    return "\n".join("| " + " | ".join(_markdown_text(text) for text in line) + " |" for line in lines)


def _markdown_text(text: str) -> str:
    """One line that cannot break out of its cell or turn into markup."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
