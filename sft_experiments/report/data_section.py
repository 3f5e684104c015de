"""The data reports of the runs, laid out: facts, one column per split, and what the data gate found."""

import json
from collections.abc import Mapping
from typing import Any

from sft_experiments.errors import RunFolderError
from sft_experiments.report.collect import flatten
from sft_experiments.report.number_format import format_value
from sft_experiments.report.page_data import run_label
from sft_experiments.report.rank import Comparison
from sft_experiments.run.files import read_json

MOST_LISTED = 12  # items of a list
_ABOUT_THE_RUN = ("seconds", "cached", "key", "schema_version")  # they differ between runs with the same data


def data_sections(comparison: Comparison) -> list[dict[str, Any]]:
    """The distinct data reports, each laid out, with the labels of the runs that share it."""
    sections: dict[str, dict[str, Any]] = {}
    for run in comparison.runs:
        try:
            report = read_json(run.folder.data_report)
        except RunFolderError:
            continue  # a run that failed before its data were read has none
        if not isinstance(report, dict):
            continue
        report = {key: value for key, value in report.items() if key not in _ABOUT_THE_RUN}
        section = sections.setdefault(json.dumps(report, sort_keys=True), _layout(report) | {"runs": []})
        section["runs"].append(run_label(run, comparison))
    return list(sections.values())


def _layout(report: dict[str, Any]) -> dict[str, Any]:
    splits = report.pop("splits", None)
    splits = splits if isinstance(splits, dict) and all(isinstance(split, dict) for split in splits.values()) else {}
    findings = report.pop("findings", [])
    return {
        "facts": [(name.replace("_", " "), _text(value)) for name, value in flatten(report)],
        "splits": list(splits),
        "split_rows": _split_rows(splits),
        "findings": [_finding(item) for item in findings] if isinstance(findings, list) else [_text(findings)],
    }


def _split_rows(splits: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(name, value in each split); percentiles and other small mappings share one row."""
    names = dict.fromkeys(name for split in splits.values() for name in split)
    rows = [(name.replace("_", " "), [_text(split.get(name)) for split in splits.values()]) for name in names]
    return [(name, values) for name, values in rows if any(values)]


def _finding(item: Any) -> str:
    """One finding of the gate on one line, whatever fields it has."""
    if not isinstance(item, dict):
        return _text(item)
    return "; ".join(f"{name.replace('_', ' ')}: {_text(value)}" for name, value in item.items() if _text(value))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        shown = ", ".join(_text(item) for item in value[:MOST_LISTED])
        return shown + (f", ... ({len(value)} in all)" if len(value) > MOST_LISTED else "")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else format_value(value)
