"""Each planted fault is caught by `sft check`, by the item about it; a healthy run passes and leaves no trace."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sft_experiments.config.hydra import composed
from sft_experiments.data.prepare import prepare_data
from sft_experiments.launch.trial import Trial, plan_run
from sft_experiments.sanity import short_run
from sft_experiments.sanity.short_run import SanityReport, check_trial, fixed_rows
from sft_experiments.training.model import load_tokenizer
from sft_experiments.training.run import load
from sft_experiments.training.trainer import ExperimentTrainer

BASE = ["train.effective_batch_size=8", "generation.max_new_tokens=12", "logger=none"]
SMALL_DEMO = ["dataset.demo.num_train=300", "dataset.demo.num_validation=70"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def planned(*overrides: str) -> Trial:
    demo = [] if "dataset=messages" in overrides else SMALL_DEMO
    with composed([*BASE, *demo, *overrides]) as composition:
        return plan_run(composition)


def checked(*overrides: str, steps: int = 6) -> SanityReport:
    return check_trial(planned(*overrides), num_rows=24, num_steps=steps)


def failed_items(report: SanityReport) -> dict[str, str]:
    return {item.name: item.found for item in report.items if item.verdict == "fail"}


def test_a_healthy_run_passes_with_every_item_looked_at() -> None:
    report = checked(steps=15)
    assert failed_items(report) == {}
    assert [item.name for item in report.items] == [
        "data", "labels", "end of turn in the labels", "model", "trainable weights", "loss on fixed rows",
        "loss by step",
        "end-of-turn probability", "generations", "memory", "speed",
    ]  # fmt: skip
    assert len(report.trajectory) == 15
    assert len(report.answers_before) == len(report.answers_after) == short_run.NUM_PROMPTS


def test_packed_rows_and_adapters_are_checked_too() -> None:
    report = checked("dataset.packing=bfd", "peft=lora", steps=4)
    assert failed_items(report) == {}


def test_a_run_that_is_to_be_shared_out_is_checked_whole_in_one_process() -> None:
    assert failed_items(checked("compute.device=cpu", "compute.num_devices=2", "compute.fsdp=true", steps=4)) == {}


def write_rows(file: Path, answer: str, question: str = "What is {number} plus one?", count: int = 60) -> str:
    rows = [
        {
            "messages": [
                {"role": "user", "content": question.format(number=number)},
                {"role": "assistant", "content": answer.format(number=number + 1)},
            ]
        }
        for number in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return f"dataset.train_files=[{file}]"


# ---- planted faults


def test_an_absurd_learning_rate_is_caught() -> None:
    assert "loss by step" in failed_items(checked("train.learning_rate=1e3"))


def test_a_learning_rate_that_overflows_is_caught_as_divergence() -> None:
    assert "diverged" in failed_items(checked("train.learning_rate=1e30"))["training"]


def test_a_template_that_drops_the_answers_is_caught(tmp_path: Path) -> None:
    template = tmp_path / "wrong.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    assert set(failed_items(checked(f"model.chat_template={template}"))) == {"data"}


def test_rows_in_which_everything_is_masked_are_caught(tmp_path: Path) -> None:
    files = write_rows(tmp_path / "rows.jsonl", "{number}", question="Please " * 40 + "{number}")
    report = checked("dataset=messages", files, "dataset.max_length=8", "dataset.overlong=truncate")
    assert "data" in failed_items(report)


def test_empty_answers_are_caught(tmp_path: Path) -> None:
    assert (
        "empty_assistant_turn"
        in failed_items(checked("dataset=messages", write_rows(tmp_path / "r.jsonl", "")))["data"]
    )


def test_an_end_token_that_is_never_supervised_is_caught(tmp_path: Path) -> None:
    files = write_rows(tmp_path / "rows.jsonl", "{number} " * 60)
    report = checked("dataset=messages", files, "dataset.max_length=48", "dataset.overlong=truncate")
    assert "end of turn in the labels" in failed_items(report)


def saved_model(folder: Path, change: Callable[[Any], None], **sizes: int) -> str:
    """The demo model, damaged, with the demo tokenizer beside it."""
    trial = planned()
    tokenizer = load_tokenizer(trial.config.model)
    trial.config.model.config |= sizes
    data = prepare_data(trial.config.dataset, tokenizer)
    model, _ = load(trial.config, trial.plan, tokenizer, data)
    change(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"model.name={folder}"


def test_nan_weights_are_caught(tmp_path: Path) -> None:
    def damage(model: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3, 5] = torch.nan

    report = checked("model=hub", saved_model(tmp_path / "model", damage))
    assert "NaN" in failed_items(report)["model"]


def test_a_tokenizer_larger_than_the_embeddings_is_caught(tmp_path: Path) -> None:
    name = saved_model(tmp_path / "model", lambda model: None, vocab_size=100)
    assert "embeddings" in failed_items(checked("model=hub", name))["model"]


@contextmanager
def replaced(patch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    real = getattr(short_run, name)
    with patch.context() as inner:
        inner.setattr(short_run, name, lambda *arguments, **named: change(real(*arguments, **named)))
        yield


def test_a_frozen_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with replaced(monkeypatch, "load", lambda loaded: (loaded[0].requires_grad_(False), loaded[1])):
        report = checked()
    assert "frozen" in next(item.next_step for item in report.items if item.name == "trainable weights")
    assert report.verdict == "fail"


def test_a_learning_rate_that_moves_nothing_is_caught() -> None:
    assert "loss on fixed rows" in failed_items(checked("train.learning_rate=1e-30"))


def test_labels_that_are_not_their_own_tokens_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(rows: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
        return [
            {**row, "labels": [*row["labels"][1:], -100]} for row in rows
        ]  # shifted by hand, as the loss does again

    with replaced(monkeypatch, "fixed_rows", shift):
        assert "labels" in failed_items(checked())


def test_running_out_of_memory_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(ExperimentTrainer, "training_step", no_memory)
    report = checked()
    assert "memory" in failed_items(report)
    assert "per_device_train_batch_size" in report.items[-1].next_step


# ---- no trace


def test_the_check_writes_no_run_and_always_sees_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = checked(steps=3), checked(steps=3)
    assert list(tmp_path.iterdir()) == []
    assert first.trajectory == second.trajectory
    assert first.data is not None and second.data is not None
    assert fixed_rows(first.data, 20) == fixed_rows(second.data, 20)
    assert isinstance(first.data.train, Dataset)
