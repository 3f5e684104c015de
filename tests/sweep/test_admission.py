"""Weights of the best trials only, and no start of a sweep that the disk cannot hold."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import Trial
from sft_experiments.models.shape import shape_of
from sft_experiments.plan.forecast import disk_bytes
from sft_experiments.runs.folder import find_run_folders
from sft_experiments.runs.record import read_record
from sft_experiments.sweep.admission import check_disk
from sft_experiments.sweep.planning import plan_sweep
from tests.sweep.conftest import QUIET_RATES, Done

Usage = namedtuple("Usage", "total used free")


def planned(*overrides: str) -> list[Trial]:
    with composed(["-m", "compute.device=cpu", "train.learning_rate=1e-5,2e-5,3e-5,4e-5", *overrides]) as composition:
        return list(plan_sweep(composition)[1].values())


def test_a_sweep_that_the_disk_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trials = planned("model.config.hidden_size=1024", "model.config.intermediate_size=4096")
    one = disk_bytes(trials[0].config, shape_of(trials[0].config.model))  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 3.5 * one))
    check_disk(tmp_path / "new", trials[:3], 1)
    with pytest.raises(ConfigError, match=r"needs up to [\d.]+ GiB .* lower sweep.keep_models=3"):
        check_disk(tmp_path / "new", trials, 1)
    check_disk(tmp_path / "new", planned("sweep.keep_models=1"), 1)


@pytest.mark.slow
def test_only_the_best_keep_their_weights(sweep: Callable[..., Done], quiet: Done) -> None:
    done = sweep(QUIET_RATES, "sweep.keep_models=1")
    by_loss = sorted(find_run_folders(done.folder), key=lambda folder: read_record(folder).objective or 0)
    assert [folder.model.is_dir() for folder in by_loss] == [True, False, False]
    assert [folder.checkpoints.is_dir() for folder in by_loss] == [True, False, False]
    assert all(folder.metrics.is_file() for folder in by_loss)
    assert all(folder.model.is_dir() for folder in find_run_folders(quiet.folder))
