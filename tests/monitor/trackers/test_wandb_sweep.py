"""The ranking of a sweep as a run of its own in W&B, read back from disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.monitor.trackers.wandb_sweep import publish_sweep
from tests.monitor.conftest import shipped_logger
from tests.monitor.trackers.wandb_files import records, run_folders, summary

RATE, BATCH = "train.learning_rate", "train.effective_batch_size"
ROWS: list[dict[str, Any]] = [
    {RATE: 2e-3, BATCH: 32, "eval/loss": 0.5, "status": "completed"},
    {RATE: 1e-3, BATCH: 32, "eval/loss": 0.7, "status": "completed"},
    {RATE: 2e-3, BATCH: 8, "eval/loss": 0.8, "status": "completed"},
    {RATE: 1e-3, BATCH: 8, "eval/loss": None, "status": "diverged"},
]


@pytest.mark.slow
def test_the_sweep_is_a_run_with_ranking_and_heat_map(tmp_path: Path) -> None:
    (note,) = publish_sweep(shipped_logger("wandb"), tmp_path, "grid-ffff", ROWS, [RATE, BATCH], "eval/loss")
    assert "wandb is offline" in note
    (folder,) = run_folders(tmp_path)
    content = summary(folder)
    assert content["run_id"] == "sweep-grid-ffff"
    assert content["summary"][f"best/{RATE}"] == 2e-3
    assert (content["summary"]["trials"], content["summary"]["trials_ranked"]) == (4, 3)
    (run, *_) = [record["run"] for record in records(folder) if record["type"] == "run"]
    assert (run["run_group"], run["job_type"]) == ("grid-ffff", "sweep")
    (table,) = (folder / "files/media/table").glob("ranking*.json")
    ranking = json.loads(table.read_text())
    assert ranking["columns"] == [RATE, BATCH, "eval/loss", "status"]
    assert [row[2] for row in ranking["data"]] == [0.5, 0.7, 0.8, None]
    (plot,) = (folder / "files/media/plotly").glob("heat_map*.json")
    (heat,) = json.loads(plot.read_text())["data"]
    assert (heat["x"], heat["y"]) == (["0.001", "0.002"], ["8", "32"])
    assert heat["z"] == [[None, 0.8], [0.7, 0.5]]


def test_without_wandb_nothing_is_written(tmp_path: Path) -> None:
    assert publish_sweep(shipped_logger("tensorboard"), tmp_path, "grid", ROWS, [RATE], "eval/loss") == []
    assert list(tmp_path.iterdir()) == []
