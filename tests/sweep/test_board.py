"""What a sweep shows, read from folders alone."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import BatchPlan, Choice, Plan, StepPlan, write_plan
from sft_experiments.runs.record import Record, Status
from sft_experiments.sweep.board import LiveBoard, PlainBoard, latest_metrics
from sft_experiments.values import format_seconds


def trial(root: Path, name: str, status: Status, **values: object) -> RunFolder:
    folder = RunFolder(root / name)
    steps = StepPlan(sequences=80, steps_per_epoch=10, total_steps=10, warmup_steps=0, last_group_examples=8)
    write_plan(folder, Plan(BatchPlan(8, 1, 1), Choice("cpu", ""), Choice("fp32", ""), threads=1, steps=steps))
    Record(name, "sweep", f"learning_rate={name}", status, **values).write(folder)  # type: ignore[arg-type]
    return folder


def test_the_table_shows_each_trial_from_any_shell(tmp_path: Path) -> None:
    ago = (datetime.now(UTC) - timedelta(seconds=200)).isoformat()
    folders = [
        trial(tmp_path, "0.1", Status.completed, timings={"total": 65.2}),
        trial(tmp_path, "0.2", Status.running, started_at=ago),
        trial(tmp_path, "0.3", Status.diverged),
    ]
    folders[1].metrics.write_text('{"step": 4, "train/loss": 1.25}\n{"step": 5, "eval/loss": 1.5}\n{"step": 6, "tr')
    console = Console(file=StringIO(), width=100)
    board = LiveBoard(folders, console)
    board.refresh()
    console.print(board.table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "2 of 3 trials" in lines[0]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows["lr=0.1"] == ["completed", "1m05s"]
    assert rows["lr=0.2"][:4] == ["running", "5/10", "1.2500", "1.5000"]
    assert rows["lr=0.2"][4].startswith("3m2")
    assert rows["lr=0.3"] == ["diverged"]


def test_plain_lines_tell_when_a_trial_starts_and_ends(tmp_path: Path) -> None:
    folder = trial(tmp_path, "0.1", Status.pending)
    console = Console(file=StringIO(), width=100)
    board = PlainBoard([folder], console)
    board.started(folder)
    done = Record("0.1", "sweep", "learning_rate=0.1", Status.completed, objective=0.5)
    board.ended(folder, done)
    started, ended = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert started == "[0/1] started    lr=0.1"
    assert ended.startswith("[1/1] completed  lr=0.1  eval/loss 0.5000")


def test_a_preempted_trial_is_not_done_and_a_stopping_sweep_has_no_time_left(tmp_path: Path) -> None:
    folders = [trial(tmp_path, name, Status.pending) for name in ("0.1", "0.2", "0.3", "0.4")]
    board = LiveBoard(folders, Console(file=StringIO(), width=100))
    board.begun -= 60
    for folder, status in zip(folders, (Status.completed, Status.preempted), strict=False):
        board.started(folder)
        board.ended(folder, Record(folder.path.name, "sweep", "", status))
    assert str(board.table().title) == "1 of 4 trials, about 3m00s left"
    board.stopping = True
    assert str(board.table().title) == "1 of 4 trials, stopping"


def test_another_process_gives_no_pace(tmp_path: Path) -> None:
    folder = trial(tmp_path, "0.1", Status.running)
    folder.metrics.write_text('{"step": 5, "train/loss": 1.25}\n')
    board = LiveBoard([folder], Console(file=StringIO(), width=100))
    board.refresh()
    assert board.remaining_seconds() is None


def test_metrics_of_a_long_file_are_read_from_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(f'{{"step": {step}, "train/loss": {step}}}\n' for step in range(1000)))
    assert latest_metrics(folder)["step"] == 999
    assert latest_metrics(RunFolder(tmp_path / "none")) == {}


@pytest.mark.parametrize(("seconds", "text"), [(44.6, "45s"), (185, "3m05s"), (7800, "2h10m")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
