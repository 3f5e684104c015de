"""A trial knows its folder, its label and the command that reproduces it."""

from pathlib import Path

import pytest

from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import LONGEST_LABEL, folder_name, label_of, trial_folder
from sft_experiments.runs.record import Status, read_record


def test_the_label_names_what_differs() -> None:
    assert label_of({"train.learning_rate": 0.002, "scheduler": "linear"}) == "learning_rate=2e-3 scheduler=linear"


def test_a_folder_is_found_by_id_whatever_its_label(tmp_path: Path) -> None:
    (tmp_path / "learning_rate=1-0123456789ab").mkdir()
    assert trial_folder(tmp_path, "another label", "0123456789ab").path.name == "learning_rate=1-0123456789ab"


def test_folder_names_need_no_quoting_and_stay_short(tmp_path: Path) -> None:
    assert folder_name("a b/c:d*e") == "a_b_c_d_e"
    name = trial_folder(tmp_path, "x=1 " * 100, "0123456789ab").path.name
    assert len(name) <= LONGEST_LABEL + 13


def test_the_command_in_the_record_reproduces_the_trial(planned) -> None:
    trial = planned("scheduler=linear", axes={"train.learning_rate": 0.002})
    assert trial.record.command == "sft train scheduler=linear train.learning_rate=2e-3"


def test_a_written_trial_is_pending_and_keeps_the_attempts_of_before(planned) -> None:
    trial = planned()
    trial.write()
    record = read_record(trial.folder)
    assert record.status is Status.pending
    record.attempts = 3
    record.write(trial.folder)
    planned().write()
    assert read_record(trial.folder).attempts == 3


def test_starting_over_moves_what_was_there_aside(planned) -> None:
    first = planned("rerun=true")
    for number in (1, 2):
        first.write()
        first.start_over()
        assert not first.folder.path.exists()
        kept = first.folder.path.parent / ".superseded"
        assert len(list(kept.iterdir())) == number


def test_every_dial_has_an_origin(planned) -> None:
    values = planned("train.weight_decay=0.05", axes={"train.learning_rate": 0.001}).plan.values
    assert values["train.weight_decay"]["origin"] == "command line"
    assert values["train.learning_rate"]["origin"] == "sweep"
    assert values["train.num_train_epochs"]["origin"] == "model size class tiny"
    assert values["scheduler.name"]["origin"] == "default"


def test_the_learning_rate_names_the_adapters_factor_only_where_it_changes_it(planned) -> None:
    origins = [planned(*peft).plan.values["train.learning_rate"]["origin"] for peft in ([], ["peft=lora"])]
    assert origins == ["model size class tiny", "model size class tiny x peft.learning_rate_factor"]


def test_epochs_are_no_dial_where_max_steps_decides(planned) -> None:
    values = planned("train.max_steps=5").plan.values
    assert "train.num_train_epochs" not in values and values["train.max_steps"]["value"] == 5


def test_an_experiment_is_named_as_the_origin(planned, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text("{}\n")
    overrides = ["experiment=llama3_1_8b_tutorial", "dataset.train_files=chat.jsonl"]
    values = planned(*overrides).plan.values
    assert values["train.learning_rate"] == {"value": 2e-5, "origin": "experiment"}
    assert values["scheduler.warmup_ratio"]["origin"] == "experiment"


def test_an_option_that_an_experiment_chooses_and_a_value_in_a_typed_mapping_have_their_origins(planned) -> None:
    overrides = ["experiment=llama3_1_8b_tutorial", "dataset=demo", "train={max_steps: 7}"]
    values = planned(*overrides).plan.values
    assert values["scheduler.name"]["origin"] == "experiment"
    assert values["train.max_steps"] == {"value": 7, "origin": "command line"}
    assert values["train.weight_decay"]["origin"] == "experiment"


def test_what_the_environment_gives_a_tracker_is_shown_unless_it_is_typed_or_not_used(
    planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    shown = planned("logger=wandb").plan.values["logger.wandb.project"]
    assert shown == {"value": "ours", "origin": "environment: WANDB_PROJECT"}
    assert "logger.wandb.project" not in planned("logger=tensorboard").plan.values
    assert "logger.wandb.project" not in planned("logger=wandb", "logger.wandb.project=mine").plan.values


@pytest.mark.parametrize("length", ["train.num_train_epochs=1", "train.max_steps=20"])
def test_a_warmup_longer_than_the_training_is_refused_before_the_data_are_prepared(planned, length: str) -> None:
    demo = "dataset.demo={num_train: 120}"
    with pytest.raises(ConfigError, match=r"scheduler\.warmup_steps=500 is more than"):
        planned(demo, "scheduler.warmup_steps=500", "train.effective_batch_size=4", length)
    assert planned(demo, "scheduler.warmup_steps=20", "train.effective_batch_size=4", length).id
