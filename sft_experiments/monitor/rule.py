"""What a health rule is.

Each rule is a small state machine over the event stream: no clock, no randomness, no device. It sees every event in
order and answers with a sentence when its sign is there, else with None. What happens then is decided in health.py;
docs/health.md explains each rule, and thresholds are in conf/monitor.
"""

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Protocol

from sft_experiments.monitor.events import Event


class Rule(Protocol):
    def observe(self, event: Event) -> str | None: ...


def finite_value(event: Event, name: str) -> float | None:
    value = event.get(name)
    return value if value is not None and math.isfinite(value) else None


def first_value(event: Event, names: Iterable[str]) -> float | None:
    return next((event[name] for name in names if name in event), None)


def is_full(values: deque[float]) -> bool:
    return len(values) == values.maxlen


def rises(values: Iterable[float], least: float) -> bool:
    """Whether each value is more than ``least`` above the one before it."""
    return all(after - before > least for before, after in pairwise(values))
