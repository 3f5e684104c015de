"""The model card of an exported run, in the Hub's format: YAML front matter, then Markdown. No torch here."""

import json
from collections.abc import Sequence
from typing import Any

from sft_experiments.errors import RunFolderError
from sft_experiments.files import read_json
from sft_experiments.results.curves import read_curves
from sft_experiments.results.text_formats import markdown_table
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import EVAL_LOSS, Shown, shown_in
from sft_experiments.runs.plan_file import find_plan
from sft_experiments.runs.record import Record
from sft_experiments.values import flatten, format_count, format_score, format_seconds, format_value

MOST_EVALUATIONS = 25  # rows of the table of curves


def model_card(folder: RunFolder, record: Record, base_model: str | None, report: str) -> str:
    """What the model is, how good it is, what it was trained on and how to train it again."""
    parts = [
        _front_matter(record, base_model),
        f"# {record.name}" + (f" ({record.label})" if record.label else ""),
        f"Supervised fine-tuning with sft_experiments and TRL. Curves and settings in full: [{report}]({report}).",
        "## Results\n\n" + _results(record),
        "## Curves\n\n" + _curves(folder),
        "## Data\n\n" + _data(folder, record),
        "## Training\n\n" + _training(folder, record),
        "## Use\n\n" + _USE,
        "## All settings\n\n" + _settings(record),
    ]
    return "\n\n".join(parts) + "\n"


_USE = """```python
from transformers import pipeline

chat = pipeline("text-generation", model="PATH")
print(chat([{"role": "user", "content": "..."}])[0]["generated_text"][-1]["content"])
```"""


def _front_matter(record: Record, base_model: str | None) -> str:
    """JSON values are YAML values too, and are quoted safely."""
    model = record.config.get("model", {})
    base = base_model or (model.get("name") if model.get("source") == "pretrained" else None)
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "trl", "sft_experiments"],
        **({"base_model": base} if base else {}),
    }
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _results(record: Record) -> str:
    """The objective first, then all that was measured on data; the restored best checkpoint's numbers."""
    measured = {name: value for name, value in record.metrics.items() if name.startswith(("eval/", "test/"))}
    numbers = {name: value for name, value in measured.items() if isinstance(value, float) and name != "eval/seconds"}
    first = record.objective_metric
    order = [*([first] if first in numbers else []), *(name for name in numbers if name != first)]
    return markdown_table(["metric", "value"], [[name, format_score(numbers[name])] for name in order], [False, True])


def _curves(folder: RunFolder) -> str:
    """The evaluations, thinned to a table's length; the first and the last stay."""
    curves = read_curves(folder.metrics)
    events = [event for event in curves.events if EVAL_LOSS in event]
    if not events:
        return "No evaluation was logged."
    every = max(len(events) // MOST_EVALUATIONS, 1)
    names = [one.name for one in shown_in(Shown.chart, "eval/") if any(one.name in event for event in events)]
    rows = [_curve_row(event, names) for event in [*events[:-1:every], events[-1]]]
    return markdown_table(["step", "tokens", *names], rows, [True] * (2 + len(names)))


def _curve_row(event: dict[str, Any], names: Sequence[str]) -> list[str]:
    values = [event.get(name) for name in names]
    return [str(event["step"]), format_count(event.get("tokens")), *(format_score(value) for value in values)]


def _data(folder: RunFolder, record: Record) -> str:
    dataset = record.config.get("dataset", {})
    lines = [f"- data set: {dataset.get('name')} (format {dataset.get('format')})"]
    try:
        splits = read_json(folder.data_report).get("splits", {})
    except RunFolderError:
        splits = {}
    for split, facts in splits.items():
        tokens, supervised = format_count(facts.get("tokens")), format_count(facts.get("supervised_tokens"))
        lines.append(f"- {split}: {facts.get('rows')} rows, {tokens} tokens, {supervised} of them supervised")
    lines += [f"- {name}: `{value}`" for name, value in record.fingerprints.items()]
    return "\n".join(lines)


def _training(folder: RunFolder, record: Record) -> str:
    plan, environment = find_plan(folder), record.environment
    versions = environment.get("versions", {})
    facts = {
        "reproduce": f"`{record.command}`" if record.command else None,
        "steps": plan.steps.total_steps if plan and plan.steps else None,
        "tokens": format_count(record.metrics.get("tokens")),
        "time": format_seconds(record.timings.get("train")),
        "device": environment.get("device"),
        "precision": plan.precision.value if plan else None,
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions
        ),
        "code": environment.get("git", {}).get("commit") if isinstance(environment.get("git"), dict) else None,
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _settings(record: Record) -> str:
    rows = [[f"`{key}`", format_value(value)] for key, value in flatten(record.config).items()]
    return markdown_table(["key", "value"], rows, [False, False])
