"""Two trials at once on the CPU share the cores out and do not spin against each other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.side_by_side import TimedStarter
from sft_experiments.plan.machine import cpu_count
from sft_experiments.sweep import pool
from tests.sweep.conftest import Done

pytestmark = pytest.mark.slow

TWO_TRIALS = ("train.learning_rate=0.001,0.002", "compute.threads=null", "train.max_steps=40", "train.eval_steps=20")
LEEWAY = 1.5  # spinning costs an order of magnitude


def cpu_seconds(done: Done) -> float:
    """Of all trials, every thread of theirs counted."""
    files = [Path(file) for file in done.folder.glob("*/cpu.json")]
    assert len(files) == 2, done.shown
    return float(sum(json.loads(file.read_text()) for file in files))


def test_two_trials_at_once_have_half_the_cores_each_and_use_no_more_cpu_time(
    sweep_in: Callable[..., Done], plant: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "WarmStarter", TimedStarter)
    for name in ("together", "in_turn"):
        (tmp_path / name).mkdir()
    together = sweep_in(tmp_path / "together", *TWO_TRIALS, "sweep.concurrent_trials=2")
    in_turn = sweep_in(tmp_path / "in_turn", *TWO_TRIALS, "sweep.concurrent_trials=1")
    share = max(1, cpu_count() // 2)
    assert [record.environment["threads"] for record in together.records()] == [share, share]
    assert [record.environment["threads"] for record in in_turn.records()] == [cpu_count(), cpu_count()]
    assert cpu_seconds(together) < LEEWAY * cpu_seconds(in_turn)
