"""`sft plan` and `sft recommend`: what they say of the demo, of files, of a sweep, and how quickly."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.commands import run
from sft_experiments.commands.plan import outlook
from sft_experiments.commands.plan_view import as_dict
from sft_experiments.config.hydra import composed
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import plan_run
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import read_plan
from sft_experiments.terminal import console
from tests.commands.conftest import planned

pytestmark = pytest.mark.usefixtures("own_folder")


def rows_file(folder: Path, count: int) -> str:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * count)
    return "dataset.train_files=[rows.jsonl]"


def test_a_run_is_planned_without_being_touched(tmp_path: Path) -> None:
    (cell,) = planned("train.effective_batch_size=16")["cells"]
    assert (cell["batch"]["per_device_train_batch_size"], cell["batch"]["gradient_accumulation_steps"]) == (16, 1)
    assert cell["steps"]["steps_per_epoch"] == 375  # 6000 rows / 16
    assert cell["state"] == "new"
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_has_a_cell_for_each_combination_in_launch_order() -> None:
    found = planned("train.learning_rate=1e-3,2e-3", "train.effective_batch_size=8,16,32")
    assert [tuple(cell["axes"].values()) for cell in found["cells"]] == [
        (rate, size) for rate in (1e-3, 2e-3) for size in (8, 16, 32)
    ]


def test_naming_a_sweep_plans_its_grid() -> None:
    assert len(planned("sweep=lr_x_batch")["cells"]) == 9


def test_the_origin_of_each_value_is_told() -> None:
    (cell,) = planned("train.learning_rate=1e-3")["cells"]
    assert cell["values"]["train.learning_rate"] == {"value": 1e-3, "origin": "command line"}
    assert cell["values"]["train.weight_decay"]["origin"] == "model size class tiny"


def test_a_warmup_longer_than_the_training_is_refused_once_the_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"scheduler\.warmup_steps=500 is more than"):
        planned("dataset=messages", rows_file(tmp_path, 40), "scheduler.warmup_steps=500")


def test_an_eight_billion_model_is_judged_against_the_device_that_is_named(tmp_path: Path) -> None:
    common = ["model=llama3_1_8b", "dataset=messages", rows_file(tmp_path, 40), "dataset.max_length=2048"]
    (cell,) = planned(*common, "--device-memory", "80GiB")["cells"]
    assert cell["memory_verdict"] == "will not fit"  # 16 bytes x 8 billion alone are 120 GiB
    assert any("peft=lora" in line for line in cell["advice"])
    lora = [*common, "peft=lora", "train.activation_checkpointing=true", "train.per_device_train_batch_size=1"]
    assert planned(*lora, "--device-memory", "80GiB")["cells"][0]["memory_verdict"] == "fits"


def test_a_price_is_that_of_all_devices_for_the_time_of_a_run_like_it(
    trained: Path, sft_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((trained / "record.json").read_text())
    monkeypatch.setenv("SFT_CACHE_DIR", sft_environment["SFT_CACHE_DIR"])  # knows how many tokens the data have
    kept = [item for item in record["overrides"] if not item.startswith("train.max_steps")]
    threads = f"compute.threads={read_plan(RunFolder(trained)).threads}"
    arguments = [*kept, "train.max_steps=120", f"output_dir={trained.parents[1]}", threads]
    one = outlook(arguments, price=3.6)
    seconds, duration = one.seconds_to_run(), one.forecasts[0].duration
    assert seconds is not None and duration is not None and "measured" in duration.basis
    assert seconds > record["timings"]["train"]  # 120 steps, not 60
    assert as_dict(one)["price"] == pytest.approx(seconds / 1000)
    (trial,) = one.trials
    several = replace(trial.config, compute=replace(trial.config.compute, num_devices=4))
    four = as_dict(replace(one, trials=[replace(trial, config=several)]))
    assert (four["device_seconds"], four["wall_seconds"]) == (pytest.approx(4 * seconds), seconds)
    assert four["price"] == pytest.approx(4 * seconds / 1000)


def test_the_terminal_shows_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("plan", ["train.learning_rate=1e-3,2e-3", "train.effective_batch_size=8", "--device-memory", "4GiB"]) == 0
    )
    shown = capsys.readouterr().out
    assert "8 x 1 x 1 = 8" in shown
    assert "fits" in shown


def test_twenty_five_cells_are_planned_by_either_command(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    rates, sizes = "1e-4,3e-4,1e-3,3e-3,1e-2", "4,8,16,32,64"
    assert len(planned(f"train.learning_rate={rates}", f"train.effective_batch_size={sizes}")["cells"]) == 25
    done = run_sft(
        tmp_path, "sweep", "--dry-run", f"train.learning_rate={rates}", f"train.effective_batch_size={sizes}"
    )
    assert done.returncode == 0, done.stderr
    assert "25 trials" in done.stdout


def test_recommend_explains_a_model(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    done = run_sft(tmp_path, "recommend", "model=llama3_1_8b")
    assert done.returncode == 0, done.stderr
    assert "2e-5" in done.stdout and "1e-5 to 5e-5" in done.stdout
    lora = run_sft(tmp_path, "recommend", "model=llama3_1_8b", "peft=lora").stdout
    assert "2e-4" in lora


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_a_narrow_terminal_hides_whole_columns_and_says_so(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_width", width)
    assert run("plan", ["train.learning_rate=1e-5,2e-5", "train.effective_batch_size=4,8"]) == 0
    shown = capsys.readouterr().out
    rows = shown[: shown.index("  device")].splitlines()[1:]
    assert "…" not in shown and all(len(row.rstrip()) <= width for row in rows)
    assert ("a wider terminal also shows: warmup" in shown) == (width <= 80)
    assert len([row for row in rows if row.endswith("new")]) == 4


def test_a_recorded_run_is_planned_with_changes() -> None:
    with composed(["train.learning_rate=0.004", "train.max_steps=7"]) as composition:
        trial = plan_run(composition)
    trial.write()
    folder = str(trial.folder.path)
    assert planned("--from", folder)["cells"][0]["trial_id"] == trial.id
    (longer,) = planned("--from", folder, "train.max_steps=9")["cells"]
    assert longer["steps"]["total_steps"] == 9
    assert longer["values"]["train.learning_rate"]["value"] == 0.004
    with pytest.raises(ConfigError, match="one value for each key"):
        run("plan", ["--from", folder, "train.max_steps=9,10"])


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "cheap"])
def test_a_price_that_is_none_is_refused(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("plan", [f"--price={price}"])
    assert f"argument --price: {price}: must be a number of at least 0" in capsys.readouterr().err
