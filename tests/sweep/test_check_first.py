"""A sweep over the user's own data is checked once before it starts; a failed check spends nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.sweep.admission import check_command, wants_check
from sft_experiments.sweep.planning import plan_sweep
from sft_experiments.values import as_override


def write_rows(folder: Path) -> str:
    def row(number: int) -> str:
        turns = [("user", f"Which number follows {number}?"), ("assistant", str(number + 1))]
        return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})

    (folder / "rows.jsonl").write_text("\n".join(map(row, range(80))))
    return "dataset.train_files=[rows.jsonl]"


def test_the_demo_is_not_checked_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = write_rows(tmp_path)
    for overrides, wanted in (
        ([], False),
        (["sweep.check=true"], True),
        (["dataset=messages", files], True),
        (["dataset=messages", files, "sweep.check=false"], False),
    ):
        with composed(["sweep=lr_x_batch", *overrides]) as composition:
            assert wants_check(list(plan_sweep(composition)[1].values())) is wanted


def test_the_middle_cell_is_checked_with_the_folders_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with composed(["sweep=lr", "train.seed=7", "name=x"]) as composition:
        trials = list(plan_sweep(composition)[1].values())
        command = check_command(composition, trials[1])
    assert command[2:4] == ["sft_experiments", "check"]
    assert "train.seed=7" in command
    assert not any(item.startswith("sweep") for item in command)
    assert as_override("train.learning_rate", trials[1].record.axes["train.learning_rate"]) in command


@pytest.mark.slow
def test_a_sweep_that_would_not_learn_is_stopped_before_it_starts(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    grid = ["train.effective_batch_size=8,16", "train.learning_rate=1e30", "logger=none"]
    done = run_sft(tmp_path, "train", "-m", *grid, "dataset=messages", write_rows(tmp_path), "train.max_steps=5")
    assert done.returncode == 1
    assert "the check of" in done.stderr and "nothing was trained" in done.stderr
    assert not list(tmp_path.rglob("record.json"))
