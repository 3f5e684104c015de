"""From the names that transformers and TRL log to ours, documented in docs/metrics.md."""

from collections.abc import Mapping
from typing import Any

from sft_experiments.monitor.events import Event

TOKENS = "num_tokens"
SUPERVISED_TOKENS = "num_supervised_tokens"

_RENAMED = {"eval_runtime": "eval/seconds"}
_NOT_METRICS = {
    *("epoch", "step", "total_flos", TOKENS, SUPERVISED_TOKENS, "num_input_tokens_seen"),  # axes and counters
    *("eval_num_tokens", "eval_num_supervised_tokens", "eval_samples_per_second", "eval_steps_per_second"),
}
_END_OF_TRAINING = "train_runtime"  # marks the Trainer's summary, which is not an event


def measured(logs: Mapping[str, Any]) -> Event:
    """The measurements in a Trainer log under our names; empty for logs that are not events."""
    if _END_OF_TRAINING in logs:
        return {}
    return {
        _our_name(name): float(value)
        for name, value in logs.items()
        if name not in _NOT_METRICS and isinstance(value, int | float)
    }


def _our_name(name: str) -> str:
    """``loss`` -> ``train/loss``, ``eval_loss`` -> ``eval/loss``; names that have a room already are kept."""
    if name in _RENAMED:
        return _RENAMED[name]
    if name.startswith("eval_"):
        return "eval/" + name.removeprefix("eval_")
    return name if name.startswith(("train/", "eval/", "memory/")) else f"train/{name}"
