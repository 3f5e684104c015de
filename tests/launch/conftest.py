"""Composed configs and planned trials without training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.launch.trial import Trial, plan_trial


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    """``planned(*overrides, **request fields)``: the trial that `sft train` would run in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))

    def plan(*overrides: str, **request: object) -> Trial:
        with composed(overrides) as composer:
            return plan_trial(composer.master, replace(composer.request(), **request))  # type: ignore[arg-type]

    return plan
