"""A run does what its plan says and survives its terminal, whatever the shell, an operator or a launcher left there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_experiments.errors import ConfigError
from sft_experiments.plan.machine import forget_other_processes, stand_alone
from sft_experiments.runs.folder import find_run_folders
from sft_experiments.runs.record import Record, Status, read_record
from sft_experiments.terminal import lasting_output
from tests.conftest import SMALL_DEMO, Sft

OF_ANOTHER = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "nowhere.invalid",
    "MASTER_PORT": "1",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "PMI_SIZE": "4",
    "OMPI_COMM_WORLD_SIZE": "4",
}
SHORT = [*SMALL_DEMO, "train.max_steps=6", "logger=none"]


def test_what_numbers_processes_is_forgotten_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OF_ANOTHER.items():
        monkeypatch.setenv(name, value)
    environment = {"HF_HOME": "here", "WANDB_PROJECT": "p", "CUDA_VISIBLE_DEVICES": "1", "GROUP_ID": "7", **OF_ANOTHER}
    forget_other_processes(environment)
    assert sorted(environment) == ["CUDA_VISIBLE_DEVICES", "GROUP_ID", "HF_HOME", "WANDB_PROJECT"]
    stand_alone()
    assert not {*OF_ANOTHER} & {*os.environ}


def test_one_of_several_processes_of_torchrun_is_told_what_to_type(sft: Sft) -> None:
    for command in ("train", "sweep", "plan"):
        done = sft(command, TORCHELASTIC_RUN_ID="none", WORLD_SIZE="2", RANK="0")
        assert done.returncode == 2
        assert "compute.num_devices=2" in done.stderr and len(done.stderr.splitlines()) == 1


def test_torchrun_with_one_process_is_a_process_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    stand_alone()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError):
        stand_alone()


def one_record(home: Path) -> Record:
    (folder,) = find_run_folders(home)
    return read_record(folder)


@pytest.mark.slow
@pytest.mark.parametrize("isolate", ["true", "false"])
def test_a_run_trains_its_plan_where_an_operator_left_ranks_behind(sft: Sft, tmp_path: Path, isolate: str) -> None:
    done = sft("train", *SHORT, f"compute.isolate={isolate}", **OF_ANOTHER)
    assert done.returncode == 0, done.stdout + done.stderr
    left = one_record(tmp_path)
    (tmp_path / "outputs").rename(tmp_path / "with")
    assert sft("train", *SHORT, f"compute.isolate={isolate}").returncode == 0
    (alone,) = find_run_folders(tmp_path / "outputs")
    expected = read_record(alone)
    assert (left.trial_id, left.objective, left.metrics["tokens"]) == (
        expected.trial_id,
        expected.objective,
        expected.metrics["tokens"],
    )


@pytest.mark.slow
def test_a_worker_that_finds_another_world_than_planned_does_not_train(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(trained), str(folder)], check=True)
    command = [sys.executable, "-m", "sft_experiments.training.worker", str(folder)]
    before = (folder / "record.json").read_bytes()
    done = subprocess.run(
        command, env={**os.environ, **OF_ANOTHER, "RANK": "0"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "planned for 1 processes, and this is one of 2" in done.stderr
    assert (folder / "record.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train"], ["sweep", "train.learning_rate=1e-3", "train.effective_batch_size=8"]])
def test_a_reader_that_leaves_stops_nothing(
    tmp_path: Path, sft_environment: dict[str, str], command: list[str]
) -> None:
    line = f"{sys.executable} -m sft_experiments {' '.join([*command, *SHORT])} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=sft_environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "0", done.stdout + done.stderr
    assert done.stderr == ""
    assert one_record(tmp_path).status is Status.completed


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_any_encoding_shows_a_run_and_its_log_is_utf_8(sft: Sft, tmp_path: Path, encoding: str) -> None:
    plain = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    for command in (["train"], ["train", "-m", "train.seed=1,2"]):
        done = sft(*command, *SHORT, **plain)
        assert done.returncode == 0, done.stdout + done.stderr
    records = [read_record(folder) for folder in find_run_folders(tmp_path)]
    assert [record.status for record in records] == [Status.completed] * 3
    for folder in find_run_folders(tmp_path):
        folder.log.read_bytes().decode("utf-8")


def test_what_cannot_be_written_is_dropped_and_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with lasting_output():
            for _ in range(3):
                print("x" * 100_000, flush=True)
        monkeypatch.undo()
