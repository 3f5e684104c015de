"""What the page shows beside numbers: samples, settings, failures, environment. Plain values for the template."""

import json
from collections.abc import Mapping
from typing import Any

from sft_experiments.errors import RunFolderError
from sft_experiments.files import json_lines, read_json
from sft_experiments.report.page_data import run_label
from sft_experiments.results.collect import Run
from sft_experiments.results.compare import best_seed
from sft_experiments.results.rank import Comparison, why_unranked
from sft_experiments.results.settings import differing_keys, identity, sort_key
from sft_experiments.runs.record import Status
from sft_experiments.values import flatten, format_value

NUM_SAMPLE_RUNS = 3
NUM_SAMPLE_PROMPTS = 12


def sample_table(comparison: Comparison) -> dict[str, Any] | None:
    """The best runs' last answers to the same prompts, side by side; None when nothing was generated."""
    runs = [best_seed(cell, comparison) for cell in comparison.cells[:NUM_SAMPLE_RUNS]]
    answers = {run_label(run, comparison): last_samples(run) for run in runs}
    answers = {label: samples for label, samples in answers.items() if samples}
    if not answers:
        return None
    prompts = list(dict.fromkeys(key for samples in answers.values() for key in samples))[:NUM_SAMPLE_PROMPTS]
    rows = []
    for key in prompts:
        found = [samples.get(key) for samples in answers.values()]
        first = next(sample for sample in found if sample)
        rows.append({"prompt": _prompt_text(first), "reference": first.get("reference"), "answers": found})
    steps = [next(iter(samples.values()))["step"] for samples in answers.values()]
    return {"labels": list(answers), "steps": steps, "rows": rows}


def last_samples(run: Run) -> dict[str, dict[str, Any]]:
    """The samples of a run's best step when they were kept, else of its last, by prompt."""
    by_step: dict[int, dict[str, dict[str, Any]]] = {}
    for sample in json_lines(run.folder.samples):
        if isinstance(sample.get("step"), int) and "prompt" in sample:
            by_step.setdefault(sample["step"], {})[json.dumps(sample["prompt"], sort_keys=True)] = sample
    best = run.record.metrics.get("best/step")
    chosen = best if isinstance(best, int) and best in by_step else max(by_step, default=0)
    return by_step.get(chosen, {})


def setting_differences(comparison: Comparison) -> list[dict[str, str]]:
    """Each differing setting: the values tried, and the best run's."""
    rows = []
    for key in differing_keys(comparison.runs):
        distinct = {identity(run.values.get(key)): run.values.get(key) for run in comparison.runs}
        values = sorted(
            distinct.values(), key=lambda value: sort_key(value if not isinstance(value, list) else str(value))
        )
        best = format_value(comparison.best.values.get(key)) if comparison.best else ""
        rows.append({"key": key, "values": ", ".join(format_value(value) for value in values), "best": best})
    return rows


def best_config(run: Run) -> list[tuple[str, str, str]]:
    """(key, value, where it came from) of every setting of a run."""
    origins = run.plan.values if run.plan is not None else {}
    return [
        (
            key,
            format_value(value),
            str(origin.get("origin", "")) if isinstance(origin := origins.get(key), dict) else "",
        )
        for key, value in run.values.items()
    ]


def failures(comparison: Comparison) -> list[dict[str, Any]]:
    """Runs that did not complete: class, reason and the last lines of their log."""
    return [
        {
            "label": run_label(run, comparison),
            "name": run.name,
            "status": run.record.status.value,
            "why": why_unranked(run, comparison.metric, comparison.direction),
            "log": "\n".join(run.record.failure.log_tail) if run.record.failure else "",
        }
        for run in comparison.unranked
        if run.record.status.is_failure or run.record.status is Status.completed
    ]


def environment(comparison: Comparison) -> list[tuple[str, str]]:
    """(name, value) of the machine and the code; several values when runs differ."""
    values: dict[str, dict[str, None]] = {}
    for run in comparison.runs:
        for key, value in flatten(run.record.environment).items():
            values.setdefault(key, {})[format_value(value)] = None
    return [(key, "; ".join(found)) for key, found in values.items()]


def _prompt_text(sample: dict[str, Any]) -> str:
    """The turns of a prompt, the roles named only when there is more than the user's."""
    turns = sample["prompt"]
    if not isinstance(turns, list):
        return str(turns)
    pairs = [(str(turn.get("role")), str(turn.get("content"))) for turn in turns if isinstance(turn, dict)]
    return pairs[0][1] if len(pairs) == 1 else "\n".join(f"{role}: {content}" for role, content in pairs)


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
        "facts": [(name.replace("_", " "), _fact_text(value)) for name, value in flatten(report).items()],
        "splits": list(splits),
        "split_rows": _split_rows(splits),
        "findings": [_finding(item) for item in findings] if isinstance(findings, list) else [_fact_text(findings)],
    }


def _split_rows(splits: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(name, value in each split); percentiles and other small mappings share one row."""
    names = dict.fromkeys(name for split in splits.values() for name in split)
    rows = [(name.replace("_", " "), [_fact_text(split.get(name)) for split in splits.values()]) for name in names]
    return [(name, values) for name, values in rows if any(values)]


def _finding(item: Any) -> str:
    """One finding of the gate on one line, whatever fields it has."""
    if not isinstance(item, dict):
        return _fact_text(item)
    return "; ".join(
        f"{name.replace('_', ' ')}: {_fact_text(value)}" for name, value in item.items() if _fact_text(value)
    )


def _fact_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_fact_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        shown = ", ".join(_fact_text(item) for item in value[:MOST_LISTED])
        return shown + (f", ... ({len(value)} in all)" if len(value) > MOST_LISTED else "")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else format_value(value)
