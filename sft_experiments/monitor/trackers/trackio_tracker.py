"""trackio: a local dashboard on sqlite (``trackio show``), W&B's calls without an account. An optional extra."""

from collections.abc import Mapping
from typing import Any

import trackio

from sft_experiments.monitor.trackers.tracker import RunIdentity, Settings
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import NOTHING_KEPT, Alert, Event, Sample
from sft_experiments.schema import Config


class TrackioTracker:
    """Writes into trackio's own folder (``TRACKIO_DIR``). Sample generations go to the other trackers only."""

    name = "trackio"

    def __init__(self, project: str) -> None:
        self.notes: list[str] = []
        self._project = project

    def start(self, identity: RunIdentity, settings: Settings) -> None:
        self._run = trackio.init(
            project=self._project,
            name=f"{identity.label} {identity.trial_id}",  # its runs are told apart by name
            group=identity.sweep or identity.name,
            config=dict(settings),
            resume="never" if identity.resumed_step == NOTHING_KEPT else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, event: Event) -> None:
        known = {name: value for name, value in event.items() if name not in ("step", "time")}  # trackio's own names
        self._run.log(known, step=int(event["step"]))

    def alert(self, alert: Alert) -> None:
        level = trackio.AlertLevel.ERROR if alert.policy == "stop" else trackio.AlertLevel.WARN
        self._run.alert(alert.rule, text=alert.message, level=level, step=alert.step)

    def samples(self, samples: list[Sample]) -> None:
        """Not shown there: trackio keeps numbers."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        self._run.log({f"final/{name}": value for name, value in numbers.items()})
        self._run.finish()

    def abandon(self) -> None:
        """Nothing to do: its sender is a daemon thread."""


def build(config: Config, folder: RunFolder) -> TrackioTracker:
    """For the register."""
    return TrackioTracker(config.logger.project)
