"""Real runs of the demo through the command line: faults are told, trackers change nothing, secrets stay out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.metrics import read_events
from sft_experiments.runs.record import Record, read_record
from tests.monitor.trackers.wandb_files import run_folders, summary

pytestmark = pytest.mark.slow

CANARY = "canary7f3a9b1c5d"
QUICK = [
    *("compute.threads=1", "train.max_steps=12", "train.logging_steps=2", "train.eval_steps=6"),
    *("generation.num_samples=1", "generation.exact_match_rows=0", "generation.max_new_tokens=4"),
]


def sft_train(output: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sft_experiments", "train", f"output_dir={output}", *QUICK, *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


def only_run(output: Path) -> tuple[RunFolder, Record]:
    (folder,) = find_run_folders(output)
    return folder, read_record(folder)


def rules(record: Record) -> list[Any]:
    return [alert["rule"] for alert in record.alerts]


def test_weights_are_equal_to_the_bit_with_and_without_trackers(tmp_path: Path) -> None:
    weights = {}
    for logger in ("none", "both"):
        done = sft_train(tmp_path / logger, f"logger={logger}")
        assert done.returncode == 0, done.stderr
        folder, record = only_run(tmp_path / logger)
        weights[logger] = (folder.model / "model.safetensors").read_bytes()
        assert record.alerts == []
    assert weights["none"] == weights["both"]
    folder, _ = only_run(tmp_path / "both")
    (wandb,) = run_folders(folder.path)
    events = read_events(folder.metrics)
    assert summary(wandb)["summary"]["train/loss"] == events[-2]["train/loss"]
    assert list(folder.tensorboard.glob("events.out.tfevents.*"))


def test_a_diverging_run_stops_at_once_and_says_so(tmp_path: Path) -> None:
    done = sft_train(tmp_path, "logger=both", "train.learning_rate=1e30", "train.logging_steps=1")
    folder, record = only_run(tmp_path)
    assert done.returncode != 0
    assert record.status.value == "diverged"
    assert "not_finite" in rules(record)
    (wandb,) = run_folders(folder.path)
    assert (summary(wandb)["exit_code"], summary(wandb)["summary"]["status"]) == (1, "diverged")


def test_a_run_whose_weights_do_not_move_says_so(tmp_path: Path) -> None:
    done = sft_train(tmp_path, "logger=none", "train.learning_rate=1e-12", "train.weight_decay=0")
    assert done.returncode == 0, done.stderr
    assert "unchanged_weights" in rules(only_run(tmp_path)[1])


def test_a_rule_can_stop_a_run(tmp_path: Path) -> None:
    stop = ["monitor.rules.grad_norm_high.policy=stop", "monitor.rules.grad_norm_high.threshold=1e-3"]
    done = sft_train(tmp_path, "logger=none", *stop)
    folder, record = only_run(tmp_path)
    assert rules(record) == ["grad_norm_high"]
    assert max(event["step"] for event in read_events(folder.metrics)) < 12
    assert "STOP grad_norm_high" in done.stdout


def test_no_secret_reaches_a_file_or_the_terminal(tmp_path: Path) -> None:
    done = sft_train(
        tmp_path / "out",
        *("logger=both", "logger.wandb.mode=offline"),
        HF_TOKEN=CANARY,
        WANDB_API_KEY=CANARY * 3,
        MY_SERVICE_TOKEN=CANARY,
    )
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    found = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    assert found == []
