"""Name things of a run or a row on the command line: ``--sort``, ``--columns``, ``--where``."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from sft_experiments.errors import ConfigError, nearest
from sft_experiments.results.collect import Run, number
from sft_experiments.results.settings import sort_key
from sft_experiments.runs.metrics import TOKENS_PER_SECOND

Reader = Callable[[Run], Any]
FACTS: dict[str, Reader] = {
    "status": lambda run: run.record.status.value,
    "objective": lambda run: run.record.objective,
    "best_step": lambda run: number(run.record.metrics, "best/step"),
    "rung": lambda run: number(run.record.metrics, "rung"),
    "tokens": lambda run: number(run.record.metrics, "tokens"),
    "seconds": lambda run: number(run.record.timings, "total") or number(run.record.timings, "train"),
    "tokens_per_second": lambda run: number(run.record.metrics, TOKENS_PER_SECOND),
    "alerts": lambda run: ", ".join(dict.fromkeys(str(alert.get("rule")) for alert in run.record.alerts)),
    "device": lambda run: run.record.environment.get("device"),
    "trial_id": lambda run: run.record.trial_id,
    "folder": lambda run: run.name,
    "sweep": lambda run: run.record.sweep,
}


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "=": operator.eq, "<": operator.lt, ">": operator.gt
}  # fmt: skip
_CONDITION = re.compile(r"^\s*([^\s=<>!~]+)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*$")


def field_reader(word: str, runs: Sequence[Run]) -> tuple[str, Reader]:
    """The full name behind ``word`` and a function that reads it.

    It is a fact, a setting (its full name or an unambiguous end of it), or a final metric. Raises ``ConfigError`` with
    the nearest names.
    """
    if word in FACTS:
        return word, FACTS[word]
    settings = dict.fromkeys(key for run in runs for key in run.values)
    ends = [key for key in settings if key.endswith("." + word)]
    matches = (
        [key for key in settings if key == word]
        or [key for key in ends if any(key in run.deciding for run in runs)]
        or ends
    )
    if len(matches) == 1:
        key = matches[0]
        return key, lambda run: run.values.get(key)
    if matches:
        raise ConfigError(f"{word!r} names several settings: {', '.join(matches)}; write one in full")
    metrics = dict.fromkeys(key for run in runs for key in run.record.metrics)
    if word in metrics:
        return word, lambda run: run.record.metrics.get(word)
    names = [*FACTS, *settings, *(key.rsplit(".", 1)[-1] for key in settings), *metrics]
    raise ConfigError(f"no column, setting or metric is called {word!r}{nearest(word, names)}")


def filter_runs(runs: list[Run], conditions: Sequence[str]) -> list[Run]:
    """Runs for which every condition holds, e.g. ``learning_rate>=1e-4``, ``status=completed``, ``folder~warm``."""
    for condition in conditions:
        if runs:
            holds = _predicate(condition, runs)
            runs = [run for run in runs if holds(run)]
    return runs


def _predicate(condition: str, runs: Sequence[Run]) -> Callable[[Run], bool]:
    match = _CONDITION.match(condition)
    if not match:
        raise ConfigError(
            f"--where {condition!r} is no condition; write NAME OPERATOR VALUE with one of = != < <= > >= ~ (contains)"
        )
    name, sign, text = match.groups()
    _, read = field_reader(name, runs)
    if sign == "~":
        return lambda run: text in str(read(run))
    return lambda run: _compare(sign, read(run), text)


def _compare(sign: str, value: Any, text: str) -> bool:
    """Numbers compare as numbers; anything else only as text; a missing value satisfies no order."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return _OPERATORS[sign](value, float(text))
        except ValueError:
            return sign == "!="
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if sign in {"=", "!="}:
        return _OPERATORS[sign](shown, text)
    return value is not None and _OPERATORS[sign](sort_key(value), sort_key(text))
