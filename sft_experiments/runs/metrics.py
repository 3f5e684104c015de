"""The register of metrics: what each one measures, which way is better, and where it is shown.

Tables, pages, trackers, the terminal and the checks of ``objective.metric`` read it; docs/metrics.md is held to it by a
test. A module of the user's own adds to it with ``add`` (``plugins=[my_module]``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Optional

from sft_experiments.errors import ConfigError
from sft_experiments.schema import Direction
from sft_experiments.text import format_count, format_rate, format_score

EVAL_LOSS, NATS_PER_BYTE, EXACT_MATCH = "eval/loss", "eval/nats_per_byte", "eval/exact_match"
TRAIN_LOSS, GRAD_NORM, LEARNING_RATE = "train/loss", "train/grad_norm", "train/learning_rate"
TOKENS_PER_SECOND = "train/tokens_per_second"


class Shown(Flag):
    """Places where a metric appears without being asked for."""

    nowhere = 0
    line = auto()  # of a running trial, on the terminal
    table = auto()  # a column of the ranked table, where it was measured
    chart = auto()  # a curve of the report
    hparams = auto()  # a column of TensorBoard's HParams tab
    by_tokens = auto()  # in TensorBoard also against tokens


@dataclass(frozen=True)
class Metric:
    """One number that runs log. ``name`` is the same in files, trackers, tables and settings."""

    name: str
    label: str  # for people, in a line: "eval loss"
    direction: Optional[Direction] = None  # which way is better; None: neither is
    is_objective: bool = False  # of every evaluation: it may rank runs and choose checkpoints
    is_generated: bool = False  # measured on generated answers: the generation settings decide it
    shown: Shown = Shown.nowhere
    text: Callable[[float], str] = field(default=format_score)  # the value for people


METRICS: dict[str, Metric] = {}


def add(metric: Metric) -> None:
    """Put a metric into the register. Raises ``ConfigError`` when another one has its name."""
    if METRICS.setdefault(metric.name, metric) != metric:
        raise ConfigError(f"the metric {metric.name} is in the register already")


def find(name: str) -> Optional[Metric]:
    """The metric of that name, or that it is a part of: ``eval/exact_match/sort`` is one of ``eval/exact_match``."""
    while name not in METRICS and "/" in name:
        name = name.rpartition("/")[0]
    return METRICS.get(name)


def shown_in(place: Shown, room: str = "") -> Iterator[Metric]:
    """The metrics that appear in a place, in the order of the register; ``room``: only ``train/`` or ``eval/``."""
    return (metric for metric in METRICS.values() if place in metric.shown and metric.name.startswith(room))


def objectives() -> dict[str, Direction]:
    """What may rank runs, and which way is better."""
    return {one.name: one.direction for one in METRICS.values() if one.is_objective and one.direction is not None}


for _metric in (
    Metric(TRAIN_LOSS, "loss", Direction.minimize, shown=Shown.line | Shown.chart | Shown.hparams | Shown.by_tokens),
    Metric(LEARNING_RATE, "lr", shown=Shown.line | Shown.chart, text=format_rate),
    Metric(GRAD_NORM, "norm", shown=Shown.line | Shown.chart, text="{:.3g}".format),
    Metric(
        EVAL_LOSS,
        "eval loss",
        Direction.minimize,
        is_objective=True,
        shown=Shown.line | Shown.chart | Shown.hparams | Shown.by_tokens,
    ),
    Metric("eval/train_gap", "gap", shown=Shown.line | Shown.hparams, text="{:+.3f}".format),
    Metric(
        "eval/mean_token_accuracy",
        "token accuracy",
        Direction.maximize,
        is_objective=True,
        shown=Shown.line,
        text="{:.3f}".format,
    ),
    Metric(
        EXACT_MATCH,
        "exact match",
        Direction.maximize,
        is_objective=True,
        is_generated=True,
        shown=Shown.line | Shown.table | Shown.chart | Shown.hparams,
        text="{:.3f}".format,
    ),
    Metric(NATS_PER_BYTE, "nats per byte", Direction.minimize, is_objective=True),
    Metric(TOKENS_PER_SECOND, "tokens/s", Direction.maximize, shown=Shown.line | Shown.chart, text=format_count),
    Metric("train/mean_token_accuracy", "token accuracy", Direction.maximize),
    Metric("train/step_seconds", "step seconds", Direction.minimize),
    Metric("train/supervised_tokens_per_second", "supervised tokens/s", Direction.maximize),
    Metric("train/mfu", "MFU", Direction.maximize),
    Metric("train/changed_weights", "changed weights"),
    Metric("eval/seconds", "evaluation seconds", Direction.minimize),
    Metric("memory/device_allocated_gib", "device memory", shown=Shown.chart),
    Metric("memory/host_rss_gib", "host memory", shown=Shown.chart),
    Metric("memory/device_reserved_gib", "reserved device memory"),
    Metric("memory/device_peak_gib", "peak device memory"),
):
    add(_metric)
