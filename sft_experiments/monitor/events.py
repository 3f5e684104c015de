"""What travels from the trainer to files, trackers, health rules and the terminal."""

from dataclasses import dataclass
from typing import Any

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
