"""Identity is content: what decides the result changes the id, nothing else does."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.values import digest, without


@pytest.mark.parametrize(
    "override",
    [
        "name=other", "output_dir=elsewhere", "logger=none", "compute.threads=1", "sweep.retries=5",
        "train.per_device_train_batch_size=2", "train.per_device_eval_batch_size=3", "dataset.name=renamed",
        "monitor.stall_seconds=5", "train.precision=fp32", "train.learning_rate=0.0020", "train.learning_rate=2e-3",
    ],
)  # fmt: skip
def test_names_places_and_watching_do_not_change_the_id(planned, override: str) -> None:
    assert planned(override).id == planned().id


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=3e-3", "train.effective_batch_size=8", "train.seed=1", "train.data_seed=1",
        "scheduler=linear", "train.precision=bf16", "dataset.max_length=32", "dataset.demo.seed=1", "peft=lora",
        "model.config.num_hidden_layers=3",
        "compute.num_devices=2", "+train.extra.neftune_noise_alpha=5",
    ],
)  # fmt: skip
def test_what_decides_the_result_changes_the_id(planned, override: str) -> None:
    assert planned(override).id != planned().id


# A single run refuses such keys; among the defaults of an experiment or a sweep they may well stand.
@pytest.mark.parametrize(
    ("option", "override"),
    [
        ("", "generation.num_samples=1"),
        ("", "generation.exact_match_rows=10"),
        ("", "generation.max_new_tokens=9"),
        ("", "peft.r=8"),
        ("", "dataset.hub_id=owner/data"),
        ("train.max_steps=9", "train.num_train_epochs=7"),
        ("scheduler.warmup_steps=2", "scheduler.warmup_ratio=0.2"),
    ],
)
def test_what_nothing_reads_or_only_shows_does_not_change_the_id(planned, option: str, override: str) -> None:
    options = [option] if option else []
    assert planned(*options, override, overrides=[]).id == planned(*options, overrides=[]).id


def test_generation_decides_exactly_when_the_objective_is_measured_on_answers(planned) -> None:
    by_answers = ["objective.metric=eval/exact_match", "objective.direction=maximize"]
    for decides in ("generation.exact_match_rows=10", "generation.max_new_tokens=9"):
        assert planned(*by_answers, decides).id != planned(*by_answers).id
    assert planned(*by_answers, "generation.num_samples=1").id == planned(*by_answers).id


def test_the_folder_of_a_run_of_0_1_0_is_found_although_its_id_was_another(planned, tmp_path: Path) -> None:
    with_steps = planned("train.max_steps=100")
    assert with_steps.id != "72ccae018a8c"  # the id that 0.1.0 gave it; its epochs were a part of that
    (with_steps.folder.path.parent / "72ccae018a8c").mkdir(parents=True)
    assert planned("train.max_steps=100").folder.path.name == "72ccae018a8c"
    assert planned().id == "58191b71fb4a"  # as it was


def test_sharded_trials_have_ids_of_their_own(planned) -> None:
    assert planned("compute.num_devices=2", "compute.fsdp=true").id != planned("compute.num_devices=2").id


# The ids that 0.1.0 gave these: it trained adapters on an fp32 base under bf16, and adapters of a 4-bit base in bf16,
# and under FSDP it rounded losses and sums of gradients to bf16.
ADAPTERS_OF_0_1_0 = {
    "peft=lora train.precision=fp32": ("76301debc45a", True),
    "peft=lora train.precision=bf16": ("94baa09228c5", False),
    "peft=qlora model=hub model.name=owner/model model.size_class=1b_3b train.precision=fp32": ("2059d8211c2d", False),
    "compute.num_devices=2 compute.fsdp=true train.precision=bf16": ("ba23f80d142e", False),
    "compute.num_devices=2 compute.fsdp=true train.precision=fp32": ("721429f3c5a8", True),
}


@pytest.mark.parametrize("settings", ADAPTERS_OF_0_1_0)
def test_a_run_of_0_1_0_is_found_only_where_its_numbers_would_come_out_again(planned, settings: str) -> None:
    before, is_equal = ADAPTERS_OF_0_1_0[settings]
    trial = planned(*settings.split())
    (trial.folder.path.parent / before).mkdir(parents=True)
    assert (planned(*settings.split()).folder.path.name == before) is is_equal


def test_pure_bf16_with_adapters_is_the_trial_of_bf16(planned) -> None:
    pure, mixed = (planned("peft=lora", f"train.precision={name}") for name in ("pure_bf16", "bf16"))
    assert pure.id == mixed.id
    assert pure.plan.precision.value == "bf16"
    assert planned("train.precision=pure_bf16").plan.precision.value == "pure_bf16"


def write_rows(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]
    file.write_text(json.dumps({"messages": messages}) + "\n")


def test_data_count_by_content_and_not_by_path(planned, tmp_path: Path) -> None:
    write_rows(tmp_path / "a" / "rows.jsonl", "hello")
    shutil.copy(tmp_path / "a" / "rows.jsonl", tmp_path / "other.jsonl")
    first = planned("dataset=messages", "dataset.train_files=a/rows.jsonl").id
    assert planned("dataset=messages", "dataset.train_files=other.jsonl").id == first
    assert planned("dataset=messages", f"dataset.train_files={tmp_path}/other.jsonl").id == first
    write_rows(tmp_path / "other.jsonl", "hullo")
    assert planned("dataset=messages", "dataset.train_files=other.jsonl").id != first


def test_the_id_is_the_same_in_every_process(planned) -> None:
    assert planned().id == planned().id
    assert len(planned().id) == 12


@given(st.dictionaries(st.text(min_size=1), st.integers()))
def test_the_digest_ignores_the_order_of_keys(values: dict[str, int]) -> None:
    assert digest(values) == digest(dict(reversed(values.items())))


def test_leaving_out_a_key_does_not_touch_the_original() -> None:
    values = {"a": {"b": 1, "c": 2}, "d": 3}
    assert without(values, ("a.b", "nothing.here")) == {"a": {"c": 2}, "d": 3}
    assert values == {"a": {"b": 1, "c": 2}, "d": 3}
