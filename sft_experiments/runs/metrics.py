"""What a run measures: the register of metrics, and the events that travel from the trainer to files and trackers.

The register says what each metric measures, which way is better, and where it is shown. Tables, pages, trackers, the
terminal and the checks of ``objective.metric`` read it; docs/metrics.md is held to it by a test. A module of the user's
own adds to it with ``add`` (``plugins=[my_module]``).
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Flag, auto
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import ConfigError, RunFolderError
from sft_experiments.files import write_text_atomically
from sft_experiments.schema import Direction
from sft_experiments.values import format_count, format_rate, format_score

Event = dict[str, float]
"""One log event: ``step``, ``tokens``, ``epoch``, ``time`` and any of the names in docs/metrics.md."""


AXES = ("step", "tokens", "epoch", "time")
"""Keys of an event that say when it happened; the others are measurements."""


def measurements(event: Event) -> Event:
    """The part of an event that was measured (everything but its axes)."""
    return {name: value for name, value in event.items() if name not in AXES}


@dataclass(frozen=True)
class Alert:
    """One warning sign. While its rule keeps firing ``count`` and ``last_step`` grow, and ``message`` is the latest."""

    rule: str
    policy: str  # warn or stop
    step: int
    message: str
    count: int = 1
    last_step: int = 0


@dataclass(frozen=True)
class Sample:
    """The greedy answer to one validation prompt at one evaluation: a line of samples.jsonl."""

    step: int
    prompt_index: int
    prompt: list[dict[str, Any]]  # messages
    answer: str
    reference: str | None = None
    exact: bool | None = None  # None: the answer cannot be verified


NOTHING_KEPT = -1
"""The resumed step of a run that starts afresh: every older line goes."""


class JsonLinesFile:
    """An append-only file of JSON objects that each carry a ``step``.

    Opening it drops the lines after ``resumed_step`` (the file is rewritten whole or not at all), because a
    resumed run trains those steps again. Raises ``RunFolderError`` when the file cannot be written.
    """

    def __init__(self, path: Path, resumed_step: int = NOTHING_KEPT) -> None:
        self.path = path
        self.kept = [line for line in _read_lines(path) if line.get("step", 0) <= resumed_step]
        write_text_atomically(path, "".join(_as_line(line) for line in self.kept))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, content: dict[str, Any]) -> None:
        """Write one line at once. Raises ``RunFolderError`` when the disk is full or gone."""
        line = _as_line(content).encode()
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path}: {error.strerror}") from error
        if written != len(line):
            raise RunFolderError(f"cannot write {self.path}: the disk is full")

    def close(self) -> None:
        os.close(self._descriptor)


def read_events(path: Path) -> list[Event]:
    """The events of a metrics.jsonl, in order; an empty list when there is no file yet."""
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in _read_lines(path)]


def read_samples(path: Path) -> list[Sample]:
    """The lines of a samples.jsonl, in order; an empty list when there is no file yet."""
    return [Sample(**line) for line in _read_lines(path)]


def append_samples(file: JsonLinesFile, samples: list[Sample]) -> None:
    for sample in samples:
        file.append(asdict(sample))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return  # the process was killed while it wrote this line
            try:
                content = json.loads(raw)
            except ValueError as error:
                raise RunFolderError(f"{path}:{number} is not JSON: {error}") from error
            yield content


def _as_line(content: dict[str, Any]) -> str:
    finite = {name: _finite(value) for name, value in content.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
