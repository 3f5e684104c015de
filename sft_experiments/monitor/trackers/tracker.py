"""What every tracker promises, and what it is told about a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sft_experiments.runs.metrics import NOTHING_KEPT, Alert, Event, Sample

Settings = Mapping[str, Any]
"""The resolved config, flat (``train.learning_rate``), without secrets."""


@dataclass(frozen=True)
class RunIdentity:
    """Who a run is, in every tracker."""

    trial_id: str  # the tracker's run id: the same after a resume
    name: str  # of the run or sweep
    label: str  # what differs from its neighbours: the display name
    sweep: str | None = None  # the group
    axes: dict[str, Any] = field(default_factory=dict)  # sweep axis -> this trial's value
    fingerprints: dict[str, str] = field(default_factory=dict)  # of data, model, tokenizer, template
    resumed_step: int = NOTHING_KEPT  # events after this step are written again


class Tracker(Protocol):
    """A place that keeps a copy of a run's metrics.

    All methods are called from one thread that belongs to this tracker alone (never the trainer's), in the order
    start, any number of log/alert/samples, finish. They may block, raise or hang: ``Trackers`` contains it.
    Implementations import their library in ``start``, leave global random state alone, and write nothing to the
    terminal: what a person should know goes into ``notes``.
    """

    name: str
    notes: list[str]

    def start(self, identity: RunIdentity, settings: Settings) -> None: ...

    def log(self, event: Event) -> None: ...

    def alert(self, alert: Alert) -> None: ...

    def samples(self, samples: list[Sample]) -> None: ...

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """``status`` is a value of ``Status`` (runs/record.py); ``summary`` holds best and final values."""

    def abandon(self) -> None:
        """A method above raised or hangs: let go of whatever could delay the end of the process. May raise."""
