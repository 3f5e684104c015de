"""Composed configs and planned trials without training."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sft_experiments.config.hydra import Request, conf_dir, register
from sft_experiments.launch.trial import Trial, plan_trial


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    """``planned(*overrides, **request fields)``: the trial that `sft train` would run in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))

    def plan(*overrides: str, **request: object) -> Trial:
        register()
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return plan_trial(compose("config", overrides=list(overrides)), Request(list(overrides), **request))

    return plan
