"""Times come from a like run when there is one, else from arithmetic with its assumptions printed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sft_experiments.models.shape import typical_shape
from sft_experiments.plan.duration import UTILISATION, Likeness, Load, computed_duration, from_measured, measured_runs
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import BatchPlan, Choice, Plan, write_plan
from sft_experiments.values import GIB

LIKE = Likeness("m", "cpu", "cpu", "fp32", 1, "none", 64, "none")


def write_run(
    folder: Path, tokens_per_second: float, train_seconds: float, effective: int = 8, status: str = "completed"
) -> None:
    folder.mkdir(parents=True)
    record = {
        "trial_id": "x", "name": "n", "label": "", "status": status, "attempts": 1,
        "config": {
            "model": {"name": "m"}, "peft": {"method": "none"}, "dataset": {"max_length": 64, "packing": "none"},
        },
        "environment": {"device": "cpu"}, "timings": {"train": train_seconds},
        "metrics": {"tokens": 1000, "total_steps": 9},
    }  # fmt: skip
    write_plan(RunFolder(folder), Plan(BatchPlan(effective, 1, 1), Choice("cpu", ""), Choice("fp32", ""), threads=1))
    (folder / "record.json").write_text(json.dumps(record))
    losses = [{"step": 0, "eval/loss": 2.0}, {"step": 9, "eval/loss": 1.0}]
    events = [losses[0], {"step": 1, "train/tokens_per_second": tokens_per_second}, losses[1]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_training_and_evaluations_of_a_like_run_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", tokens_per_second=100, train_seconds=16)  # 10 s of steps, 3 s for each of 2 evaluations
    found = from_measured(measured_runs(tmp_path), LIKE, 8, tokens=5000, evaluations=6)
    assert found is not None
    assert found.seconds == pytest.approx(5000 / 100 + 6 * 3)
    assert str(tmp_path / "a") in found.basis


def test_of_several_like_runs_the_nearest_batch_size_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 100, 10, effective=8)
    write_run(tmp_path / "b", 500, 2, effective=64)
    found = from_measured(measured_runs(tmp_path), LIKE, 48, tokens=5000, evaluations=0)
    assert found is not None and found.seconds == pytest.approx(10)


def test_a_run_that_differs_or_did_not_complete_tells_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 100, 10, status="failed")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text("{")
    assert measured_runs(tmp_path) == []
    write_run(tmp_path / "b", 100, 10)
    runs = measured_runs(tmp_path)
    assert from_measured(runs, replace(LIKE, precision="bf16"), 8, 10, 0) is None
    assert from_measured(runs, replace(LIKE, num_devices=2), 8, 10, 0) is None
    assert measured_runs(tmp_path / "nowhere") == []


def test_a_computed_time_is_the_arithmetic_of_the_model_at_the_stated_utilisation() -> None:
    shape, load = typical_shape(8e9), Load(1e9, 1e5, 500, 1.0, False)
    found = computed_duration(shape, load, "cuda", "NVIDIA H200", 8)
    assert found is not None
    assert found.seconds == pytest.approx(6 * 8e9 * 1e9 / (989.4e12 * UTILISATION), rel=0.15)
    assert "35%" in found.basis
    slower = computed_duration(shape, replace(load, recomputes=True), "cuda", "NVIDIA H200", 8)
    assert slower is not None and slower.seconds > 1.25 * found.seconds
    shared = computed_duration(shape, replace(load, devices=4), "cuda", "NVIDIA H200", 8)
    assert shared is not None and shared.seconds == pytest.approx(found.seconds / 4)
    assert computed_duration(shape, load, "cuda", "An unknown GPU", 8) is None
    assert GIB == 2**30
