"""A real 2x2 sweep through the command line, one half of which fails: nothing is lost, nothing is run twice."""

import json
from pathlib import Path

import pytest

from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.plan_file import read_plan
from sft_experiments.runs.record import Record, Status, read_record
from tests.conftest import SMALL_DEMO, SWEEP_OF_FOUR

pytestmark = pytest.mark.slow


def records(sweep: Path) -> dict[tuple[float, int], Record]:
    found = [read_record(folder) for folder in find_run_folders(sweep)]
    return {(record.axes["train.learning_rate"], record.axes["train.effective_batch_size"]): record for record in found}


def terminal(sweep: Path) -> str:
    return (sweep / "terminal.txt").read_text()


def test_failing_trials_are_recorded_and_the_others_finish(swept: Path) -> None:
    by_cell = records(swept)
    assert {cell: record.status for cell, record in by_cell.items()} == {
        (2e-3, 16): Status.completed,
        (2e-3, 32): Status.completed,
        (1e30, 16): Status.diverged,
        (1e30, 32): Status.diverged,
    }
    assert by_cell[1e30, 16].objective is None
    assert "diverged" in by_cell[1e30, 16].failure.message


def test_all_failures_are_listed_and_the_exit_code_tells(swept: Path) -> None:
    shown = terminal(swept)
    assert shown.endswith("exit code 1")
    assert "2 of 4 trials did not complete" in shown
    for batch in (16, 32):
        assert f"diverged: learning_rate=1e+30 effective_batch_size={batch}" in shown
    assert "Traceback" not in shown


def test_the_terminal_shows_the_grid_the_split_and_the_ranking(swept: Path) -> None:
    shown = terminal(swept)
    assert "4 trials" in shown
    assert "accumulation" in shown
    assert "rank" in shown
    assert "report.html" in shown


def test_each_trial_has_its_own_learning_rate_and_seedless_order(swept: Path) -> None:
    for (rate, batch), record in records(swept).items():
        assert record.config["train"]["learning_rate"] == rate
        assert record.config["train"]["effective_batch_size"] == batch
        assert record.sweep == swept.name


def test_the_folder_is_named_by_the_config_and_not_by_the_clock(swept: Path) -> None:
    assert swept.parent.name == "outputs"
    assert swept.name.startswith("four-")


def test_data_are_prepared_once_for_the_whole_sweep(swept: Path) -> None:
    reports = [json.loads(file.read_text()) for file in sorted(swept.rglob("data_report.json"))]
    assert len({report["key"] for report in reports}) == 1
    assert sum(not report["cached"] for report in reports) <= 1


def test_the_same_command_runs_nothing_again_and_an_extended_grid_only_the_new_cells(swept: Path, run_sft) -> None:
    home = swept.parent.parent
    before = {folder.path: folder.record.read_bytes() for folder in find_run_folders(swept)}
    again = run_sft(home, "train", "-m", *SWEEP_OF_FOUR)
    assert again.returncode == 1
    assert "started" not in again.stdout
    assert before == {folder.path: folder.record.read_bytes() for folder in find_run_folders(swept)}

    wider = [argument.replace("2e-3,1e30", "0.002,1e-3,1e30") for argument in SWEEP_OF_FOUR]
    extended = run_sft(home, "train", "-m", *wider)
    assert extended.stdout.count("started") == 2, extended.stdout
    assert {
        folder.path: folder.record.read_bytes() for folder in find_run_folders(swept) if folder.path in before
    } == before
    assert len(find_run_folders(swept)) == 6


def test_one_wandb_run_per_trial_grouped_by_sweep_and_named_by_what_differs(swept: Path) -> None:
    labels = []
    for folder in find_run_folders(swept):
        (file,) = folder.path.rglob("run-*.wandb")
        content, record = file.read_bytes(), read_record(folder)
        assert record.label.encode() in content and swept.name.encode() in content
        labels.append(record.label)
    assert len({*labels}) == len(labels) >= 4


def test_a_changed_fixed_setting_is_another_sweep_and_a_named_folder_refuses_it(
    swept: Path, run_sft, tmp_path: Path
) -> None:
    home = swept.parent.parent
    named = f"hydra.sweep.dir={swept.relative_to(home)}"
    done = run_sft(home, "train", "-m", *SWEEP_OF_FOUR, "train.weight_decay=0.05", named)
    assert done.returncode == 6
    assert "holds another sweep" in done.stderr


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_other_launchers_do_the_same_work(swept: Path, run_sft, tmp_path: Path, launcher: str) -> None:
    done = run_sft(
        tmp_path, "train", "-m", *SMALL_DEMO, f"hydra/launcher={launcher}", "train.learning_rate=2e-3,1e30",
        "train.effective_batch_size=16", "train.max_steps=12", "logger=none", "name=four", "compute.threads=1",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    by_status = {record.status: record for record in map(read_record, find_run_folders(tmp_path))}
    assert set(by_status) == {Status.completed, Status.diverged}
    ours = records(swept)[2e-3, 16]
    assert by_status[Status.completed].trial_id == ours.trial_id
    assert by_status[Status.completed].objective == pytest.approx(ours.objective, abs=1e-5)


def test_a_trial_alone_equals_the_same_trial_in_the_sweep_bit_for_bit(swept: Path, run_sft, tmp_path: Path) -> None:
    in_sweep = next(folder for folder in find_run_folders(swept) if read_record(folder).axes == {
        "train.learning_rate": 2e-3, "train.effective_batch_size": 16})  # fmt: skip
    threads = read_plan(in_sweep).threads
    done = run_sft(
        tmp_path, "train", *SMALL_DEMO, "train.learning_rate=2e-3", "train.effective_batch_size=16",
        "train.max_steps=12", "logger=none", f"compute.threads={threads}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (alone,) = find_run_folders(tmp_path)
    weights = "model/model.safetensors"
    assert (alone.path / weights).read_bytes() == (in_sweep.path / weights).read_bytes()
    assert RunFolder(alone.path).record.is_file()
