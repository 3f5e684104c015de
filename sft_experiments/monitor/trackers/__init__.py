"""Trackers: copies of a run's metrics in TensorBoard, Weights & Biases or trackio."""

from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

from sft_experiments.errors import ConfigError, nearest
from sft_experiments.monitor.secrets import redact
from sft_experiments.monitor.trackers.tracker import RunIdentity, Tracker
from sft_experiments.run.folder import RunFolder
from sft_experiments.schema import Config

if TYPE_CHECKING:
    from sft_experiments.monitor.trackers.fan_out import Trackers

__all__ = ["OURS", "UPSTREAM", "RunIdentity", "Tracker", "build_trackers", "flat_settings", "upstream_names"]

OURS = ("tensorboard", "wandb", "trackio")
UPSTREAM = (
    *("azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub"),
    *("dvclive", "flyte", "kubeflow", "mlflow", "neptune", "swanlab"),
)
"""Trackers that transformers writes to itself (``report_to``): they see its own names and are not isolated."""


def build_trackers(config: Config, folder: RunFolder, identity: RunIdentity) -> "Trackers":
    """Start the trackers that ``logger.trackers`` names. Returns at once; they start in their own threads."""
    from sft_experiments.monitor.trackers.fan_out import Trackers  # late: a plan only checks names

    check_names(config.logger.trackers)
    trackers = Trackers(
        [_build(name, config, folder) for name in config.logger.trackers if name in OURS],
        config.logger.finish_seconds,
    )
    trackers.start(identity, flat_settings(config))
    return trackers


def check_names(names: list[str]) -> None:
    """Raise ``ConfigError`` for a tracker that nobody knows."""
    for name in names:
        if name not in OURS + UPSTREAM:
            known = [*OURS, *UPSTREAM]
            raise ConfigError(f"logger.trackers: {name!r} is not one of {', '.join(known)}{nearest(name, known)}")


def upstream_names(names: list[str]) -> list[str]:
    """The names that go to transformers' ``report_to``."""
    return [name for name in names if name not in OURS]


def flat_settings(config: Config) -> dict[str, Any]:
    """The whole config as ``{"train.learning_rate": 0.002, ...}``, without secrets."""
    return dict(_flatten(redact(asdict(config))))


def _flatten(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value.value if isinstance(value, Enum) else value))
    return pairs


def _build(name: str, config: Config, folder: RunFolder) -> Tracker:
    """Each kind imports libraries of its own."""
    if name == "tensorboard":
        from sft_experiments.monitor.trackers.tensorboard_tracker import TensorBoardTracker

        return TensorBoardTracker(folder.tensorboard)
    if name == "wandb":
        from sft_experiments.monitor.trackers.wandb_tracker import WandbTracker

        return WandbTracker(config.logger.wandb, folder.wandb, config.logger.finish_seconds)
    from sft_experiments.monitor.trackers.trackio_tracker import TrackioTracker

    return TrackioTracker(config.logger.project)
