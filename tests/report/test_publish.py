import json
from pathlib import Path

import pytest

from sft_experiments.report.publish import publish_ranking, ranking_rows
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.rank import compare_runs
from sft_experiments.runs.record import Status
from tests.monitor.conftest import shipped_logger
from tests.monitor.trackers.wandb_files import run_folders
from tests.results.sweep_factory import bowl, write_grid, write_run


def test_rows_hold_ranked_configurations_first_then_failures(tmp_path: Path) -> None:
    write_grid(tmp_path, batches=[8, 16])
    write_run(tmp_path, 0.5, 8, None, status=Status.diverged)
    rows = ranking_rows(compare_runs(collect_runs([tmp_path])))
    assert [row["rank"] for row in rows[:-1]] == [1, 2, 3, 3, 5, 5, 7, 7, 9, 9]  # the surface is even: pairs are equal
    assert (rows[-1]["status"], rows[-1]["learning_rate"]) == ("diverged", 0.5)


@pytest.mark.slow
def test_ranking_heat_map_and_advice_reach_wandb(tmp_path: Path) -> None:
    sweep = write_grid(tmp_path / "sweep", bowl(5e-2), batches=[8, 16])
    publish_ranking(sweep, shipped_logger("wandb"))
    (folder,) = run_folders(sweep)
    media = folder / "files" / "media"
    (ranking,), (advice,) = ((media / "table").glob(f"{name}*.json") for name in ("ranking", "advice"))
    assert len(json.loads(ranking.read_text())["data"]) == 10
    columns = json.loads(advice.read_text())["columns"]
    commands = [row[columns.index("command")] for row in json.loads(advice.read_text())["data"]]
    assert any("train.learning_rate=" in command for command in commands)
    assert len(list((media / "plotly").glob("heat_map*.json"))) == 1


def test_without_wandb_nothing_is_written(tmp_path: Path) -> None:
    sweep = write_grid(tmp_path / "sweep")
    before = sorted(sweep.iterdir())
    assert publish_ranking(sweep, shipped_logger("tensorboard")) == []
    assert sorted(sweep.iterdir()) == before
