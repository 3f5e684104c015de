"""Seconds of each phase of a trial."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of each phase, added up over attempts."""

    def __init__(self, timings: dict[str, float]) -> None:
        self.timings = timings

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.timings[phase] = round(self.timings.get(phase, 0.0) + time.monotonic() - started, 3)
