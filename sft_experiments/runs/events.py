"""What travels from the trainer to files, trackers, health rules and the terminal."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft_experiments.errors import RunFolderError
from sft_experiments.files import write_text_atomically

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
