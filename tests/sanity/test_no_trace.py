"""`sft check` as a user runs it: exit codes, JSON, page, and not a bit of the real run changes because of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

RUN = [
    "dataset.demo.num_train=300",
    "dataset.demo.num_validation=70",
    "generation.exact_match_rows=10",
    "generation.max_new_tokens=12",
    "train.max_steps=8",
    "logger=none",
]
TIMED = {"time", "eval/seconds", "train/step_seconds", "train/tokens_per_second", "train/supervised_tokens_per_second"}


def outcome(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Everything that the run measured but times and memory, and a hash of its weights."""
    (metrics,) = folder.rglob("metrics.jsonl")
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    kept = [{k: v for k, v in event.items() if k not in TIMED and not k.startswith("memory/")} for event in events]
    weights = metrics.parent / "model" / "model.safetensors"
    return kept, hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_real_run_is_the_same_with_and_without_a_check_before_it(
    run_sft: Callable[..., Any], tmp_path: Path
) -> None:
    with_check, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_check, without):
        folder.mkdir()
    done = run_sft(with_check, "check", *RUN, "--steps", "4", "--json", "--html", "check.html")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] in {"pass", "warn"}
    assert len(report["trajectory"]) == 4
    assert "<mark>" in (with_check / "check.html").read_text()
    assert [path.name for path in with_check.iterdir()] == ["check.html"]
    for folder in (with_check, without):
        assert run_sft(folder, "train", *RUN).returncode == 0
    assert outcome(with_check) == outcome(without)


def test_a_failed_check_has_exit_code_1_and_says_what_to_do(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    done = run_sft(tmp_path, "check", *RUN, "train.learning_rate=1e30", "--steps", "4")
    assert done.returncode == 1
    assert "lower train.learning_rate" in done.stdout
    assert "check: fail" in done.stdout
