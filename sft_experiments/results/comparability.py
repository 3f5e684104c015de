"""Say where ranked runs differ in what makes their numbers not comparable, or not only due to the settings."""

from collections.abc import Callable, Sequence
from typing import Any

from sft_experiments.results.collect import Run, number
from sft_experiments.runs.record import OWN_SCHEDULE
from sft_experiments.values import format_count

TOKEN_TOLERANCE = 0.02  # batch sizes that do not divide an epoch shift the tokens trained by a step or so
# A part of the fingerprint's name -> what it means when it differs. The first match counts.
_MEANING = {
    OWN_SCHEDULE: "the code of a schedule differs",
    "prepared": "prepared data differ: rows, tokenizer, template, length or packing",
    "valid": "validation data differ: the objectives are measured on different rows and do not compare",
    "eval": "validation data differ: the objectives are measured on different rows and do not compare",
    "test": "test data differ",
    "train": "training data differ",
    "token": "tokenizers differ: a loss per token does not compare between tokenizers; compare a task metric",
    "template": "chat templates differ: the loss is taken over different tokens",
    "model": "models differ",
}


def validation_of(run: Run) -> tuple[tuple[str, str], ...]:
    """What a run's objective was measured on: losses on other rows do not compare.

    The fingerprint of the validation data; where they were split off, of the training data with the share.
    """
    prints = {name: value for name, value in run.record.fingerprints.items() if "valid" in name}
    if not prints:
        prints = {name: value for name, value in run.record.fingerprints.items() if name.startswith("train")}
        prints["fraction"] = str(run.values.get("dataset.validation_fraction"))
    return tuple(sorted(prints.items()))


def comparability_notes(runs: Sequence[Run]) -> list[str]:
    """One line for each difference in data, model, tokens trained, code or device between ``runs``."""
    notes = _fingerprint_notes(runs)
    notes += _token_note(runs)
    for name, read in _ENVIRONMENT.items():
        values = sorted({str(read(run)) for run in runs if read(run) is not None})
        if len(values) > 1:
            notes.append(f"{name} differ: {', '.join(values[:4])}{', ...' if len(values) > 4 else ''}")
    return notes


def _fingerprint_notes(runs: Sequence[Run]) -> list[str]:
    names = sorted({name for run in runs for name in run.record.fingerprints})
    notes: dict[str, None] = {}  # ordered, without repetition
    for name in names:
        values = {run.record.fingerprints.get(name) for run in runs}
        if name.startswith(OWN_SCHEDULE):  # runs with another schedule have none of it
            values.discard(None)
        if len(values) > 1:
            meaning = next((text for part, text in _MEANING.items() if part in name), f"{name} differs")
            notes[f"{meaning} ({len(values)} versions)"] = None
    return list(notes)


def _token_note(runs: Sequence[Run]) -> list[str]:
    tokens = [count for run in runs if (count := number(run.record.metrics, "tokens")) is not None]
    if not tokens or max(tokens) <= min(tokens) * (1 + TOKEN_TOLERANCE):
        return []
    return [f"tokens trained differ: {format_count(min(tokens))} to {format_count(max(tokens))}"]


def _version(package: str) -> Callable[[Run], Any]:
    def read(run: Run) -> Any:
        versions = run.record.environment.get("versions")
        return versions.get(package) if isinstance(versions, dict) else None

    return read


def _code(run: Run) -> str | None:
    git = run.record.environment.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return None
    return str(git["commit"])[:10] + (" with uncommitted changes" if git.get("dirty") else "")


_ENVIRONMENT: dict[str, Callable[[Run], Any]] = {
    "code versions": _code,
    "torch versions": _version("torch"),
    "transformers versions": _version("transformers"),
    "trl versions": _version("trl"),
    "devices": lambda run: run.record.environment.get("device"),
}
