"""What trackio has in its own store after a run. Needs the extra."""

import json
import sqlite3
from pathlib import Path

import pytest

from sft_experiments.monitor.trackers.register import build_trackers
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import Alert
from tests.monitor.conftest import run_config

pytest.importorskip("trackio")


def test_metrics_and_alerts_reach_its_store(folder: RunFolder, identity: RunIdentity) -> None:
    from trackio.utils import TRACKIO_DIR

    trackers = build_trackers(run_config("trackio"), folder, identity)
    for step in (1, 2):
        trackers.log({"step": step, "tokens": 10 * step, "epoch": 0.1, "time": 1.0, "train/loss": 1 / step})
    trackers.alert(Alert("loss_spike", "warn", 2, "train/loss jumped"))
    assert trackers.finish("completed", {"eval/loss": 0.5}) == []
    with sqlite3.connect(Path(TRACKIO_DIR) / "sft-experiments.db") as store:
        name = f"{identity.label} {identity.trial_id}"
        rows = store.execute("select step, metrics from metrics where run_name = ? order by id", (name,)).fetchall()
        alerts = store.execute("select title, step from alerts where run_name = ?", (name,)).fetchall()
    assert [(step, json.loads(metrics).get("train/loss")) for step, metrics in rows[-3:-1]] == [(1, 1.0), (2, 0.5)]
    assert alerts[-1] == ("loss_spike", 2)
