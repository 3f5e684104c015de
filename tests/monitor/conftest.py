"""Fixtures of the monitor room: the shipped settings, and a network that is not there."""

import copy
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sft_experiments.config.hydra import register
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.runs.folder import RunFolder
from sft_experiments.schema import Config, LoggerConfig, MonitorConfig, TerminalMode

CONF = Path(__file__).parents[2] / "conf"


def shipped_monitor() -> MonitorConfig:
    """A copy that a test may change."""
    return copy.deepcopy(_shipped_monitor())


@cache
def _shipped_monitor() -> MonitorConfig:
    values = OmegaConf.merge(OmegaConf.structured(MonitorConfig), OmegaConf.load(CONF / "monitor/default.yaml"))
    config = OmegaConf.to_object(values)
    assert isinstance(config, MonitorConfig)
    return config


def shipped_logger(*trackers: str) -> LoggerConfig:
    register()  # conf/ has resolvers of ours
    values = OmegaConf.merge(OmegaConf.structured(LoggerConfig), OmegaConf.load(CONF / "logger/base/settings.yaml"))
    config = OmegaConf.to_object(values)
    assert isinstance(config, LoggerConfig)
    config.trackers = list(trackers)
    return config


def run_config(*trackers: str) -> Config:
    """A config as a worker has it, as far as monitoring reads it."""
    monitor = shipped_monitor()
    monitor.terminal = TerminalMode.plain
    return Config(name="grid", output_dir="outputs", logger=shipped_logger(*trackers), monitor=monitor)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "learning_rate=2e-3-0123456789ab")
    run.path.mkdir()
    return run


@pytest.fixture
def identity() -> RunIdentity:
    return RunIdentity(
        trial_id="0123456789ab",
        name="grid",
        label="learning_rate=2e-3",
        sweep="grid-ffff",
        axes={"train.learning_rate": 2e-3},
        fingerprints={"train": "aaaa", "model": "bbbb"},
    )


@pytest.fixture(autouse=True)
def no_tracker_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no stored login, and no settings of the person who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SERVICE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
