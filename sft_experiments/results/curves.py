"""metrics.jsonl as curves: what was logged while a run trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_experiments.files import json_lines

Event = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One value at one moment; ``tokens`` are non-padding tokens trained so far."""

    step: int
    tokens: float
    epoch: float
    value: float


@dataclass(frozen=True)
class Curves:
    """The events of one run in the order of their steps."""

    events: list[Event]

    def series(self, name: str) -> list[Point]:
        """All finite values of one metric."""
        points = []
        for event in self.events:
            value = event.get(name)
            if value is not None:
                step = int(event.get("step", 0))
                points.append(Point(step, float(event.get("tokens", 0)), float(event.get("epoch", 0)), float(value)))
        return points

    def tokens_at(self, step: float) -> float:
        """Tokens trained at a step, read off between the two nearest events."""
        before = after = (0.0, 0.0)
        for event in self.events:
            after = (float(event.get("step", 0)), float(event.get("tokens", 0)))
            if after[0] >= step:
                break
            before = after
        if after[0] <= before[0] or after[0] < step:
            return after[1]
        return before[1] + (after[1] - before[1]) * (step - before[0]) / (after[0] - before[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_curves(path: Path) -> Curves:
    """The curves in a metrics.jsonl; no file means no curves.

    A line that is not a JSON object with a step is left out, and so are values that are no numbers. After a resume a
    step may come twice; the later event counts.
    """
    events: dict[tuple[int, bool], Event] = {}
    for event in json_lines(path):
        if isinstance(event.get("step"), int):
            numbers = {name: value for name, value in event.items() if _is_number(value)}
            events[event["step"], any(name.startswith("eval/") for name in event)] = numbers
    return Curves([events[key] for key in sorted(events)])


TOTAL_POINTS = 40_000  # train events on a page, all runs together: about 2 MB, and drawn in a second
MOST_PER_RUN = 1_000
LEAST_PER_RUN = 120


def points_per_run(num_runs: int) -> int:
    return max(LEAST_PER_RUN, min(MOST_PER_RUN, TOTAL_POINTS // max(num_runs, 1)))


def thinned(events: Sequence[Event], limit: int, keep_extremes_of: Sequence[str]) -> list[Event]:
    """At most about ``limit`` events in order: in each stretch, those where a watched metric is lowest or highest.

    Spikes survive, unlike with every n-th point or a moving mean. The first and the last event stay.
    """
    if len(events) <= limit:
        return list(events)
    num_stretches = max(limit // (2 * len(keep_extremes_of)), 1)
    kept = {0, len(events) - 1}
    for stretch in range(num_stretches):
        start, end = (len(events) * position // num_stretches for position in (stretch, stretch + 1))
        for name in keep_extremes_of:
            present = [index for index in range(start, end) if isinstance(events[index].get(name), int | float)]
            if present:
                kept.add(min(present, key=lambda index: events[index][name]))
                kept.add(max(present, key=lambda index: events[index][name]))
    return [events[index] for index in sorted(kept)]
