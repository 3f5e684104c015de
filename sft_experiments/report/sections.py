"""What the page shows beside numbers: samples, settings, failures, environment. Plain values for the template."""

import json
from collections.abc import Iterator
from typing import Any

from sft_experiments.report.best import best_seed
from sft_experiments.report.collect import Run, flatten
from sft_experiments.report.columns import differing_keys, identity, sort_key
from sft_experiments.report.number_format import format_value
from sft_experiments.report.page_data import run_label
from sft_experiments.report.rank import Comparison, why_unranked
from sft_experiments.run.record import Status

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
    for sample in _json_lines(run):
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
    origins = run.record.plan.get("values")
    origins = origins if isinstance(origins, dict) else {}
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
        for key, value in flatten(run.record.environment):
            values.setdefault(key, {})[format_value(value)] = None
    return [(key, "; ".join(found)) for key, found in values.items()]


def _prompt_text(sample: dict[str, Any]) -> str:
    """The turns of a prompt, the roles named only when there is more than the user's."""
    turns = sample["prompt"]
    if not isinstance(turns, list):
        return str(turns)
    pairs = [(str(turn.get("role")), str(turn.get("content"))) for turn in turns if isinstance(turn, dict)]
    return pairs[0][1] if len(pairs) == 1 else "\n".join(f"{role}: {content}" for role, content in pairs)


def _json_lines(run: Run) -> Iterator[dict[str, Any]]:
    try:
        text = run.folder.samples.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # half a line after a kill
        if isinstance(value, dict):
            yield value
