"""A pretrained chat model with a template of its own learns here as users' models do: whole, as LoRA, and packed.

Random weights forgive what these do not: a wrong template, mask, scale or rotary base is at once a worse answer.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Sft

pytestmark = pytest.mark.slow

CAPITALS = {"Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Greece": "Athens", "Peru": "Lima"}
UNSEEN = {"France": "Paris", "Norway": "Oslo"}
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."  # as the model was published
TAUGHT = "The capital of France is Paris, my friend."  # as the rows below teach it to answer
SHORT = [
    "train.precision=fp32",  # whatever the machine has: losses are compared closely
    "train.max_steps=2",
    "train.eval_steps=2",
    "train.load_best_model_at_end=false",
    "scheduler.name=constant",
    "scheduler.warmup_ratio=0",
    "generation.num_samples=1",
    "generation.max_new_tokens=16",
    "logger=none",
]


@pytest.fixture(scope="module")
def pretrained(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The arguments for the model and the rows; what is trained of it is large, and goes with the last test."""
    home = tmp_path_factory.mktemp("real")
    files = {"train": CAPITALS, "validation": UNSEEN}
    for name, capitals in files.items():
        rows = [
            {
                "prompt": QUESTION.replace("France", country),
                "completion": TAUGHT.replace("France", country).replace("Paris", city),
            }
            for country, city in capitals.items()
        ]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = [f"dataset.{name}_files={home / name}.jsonl" for name in files]
    yield ["model=hub", f"model.name={real_model}", "dataset=prompt_completion", *data, f"output_dir={home}"]
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def whole(run_sft: Sft, pretrained: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trains all weights, on one row to a sequence."""
    batch = ["train.effective_batch_size=6", "train.learning_rate=1e-4"]
    return train(run_sft, tmp_path_factory, [*pretrained, *SHORT, *batch, "name=whole"])


@pytest.fixture(scope="module")
def adapter(run_sft: Sft, pretrained: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same rows that trains adapters, on all rows in one packed sequence."""
    batch = ["train.effective_batch_size=1", "train.learning_rate=2e-3", "dataset.packing=bfd"]
    return train(run_sft, tmp_path_factory, [*pretrained, *SHORT, *batch, "peft=lora", "name=adapter"])


def train(run_sft: Sft, tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    done = run_sft(tmp_path_factory.mktemp("here"), "train", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (home,) = (setting.partition("=")[2] for setting in settings if setting.startswith("output_dir="))
    (record,) = (Path(home) / settings[-1].removeprefix("name=")).rglob("record.json")
    return record.parent


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def logged(run: Path, name: str) -> list[float]:
    return [event[name] for event in lines(run / "metrics.jsonl") if name in event]


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_pretrained_model_answers_at_first_as_published_and_learns_in_two_steps(kind, request):
    run = request.getfixturevalue(kind)
    assert [sample["answer"] for sample in lines(run / "samples.jsonl")] == [ANSWER, TAUGHT]
    before, after = logged(run, "eval/loss")
    assert after < before / 3
    assert before < 2  # nats per token: what it answers unasked is nearly what is asked for


def test_its_own_chat_template_is_trained_and_saved(whole, adapter, real_model):
    template = (real_model / "chat_template.jinja").read_text(encoding="utf-8")
    assert "SmolLM" in template  # a system turn of its own, which no other template has
    for run in (whole, adapter):
        assert (run / "model" / "chat_template.jinja").read_text(encoding="utf-8") == template


def test_packed_rows_have_the_loss_that_they_have_apart(whole, adapter):
    assert json.loads((adapter / "data_report.json").read_text())["splits"]["train"]["sequences"] == 1
    assert logged(adapter, "train/loss")[0] == pytest.approx(logged(whole, "train/loss")[0], rel=1e-4)


def test_the_saved_adapter_answers_in_a_chat_as_it_was_taught(sft_environment, adapter):
    command = [sys.executable, "-m", "sft_experiments", "chat", str(adapter)]
    told = subprocess.run(command, input=QUESTION, env=sft_environment, capture_output=True, text=True, timeout=300)
    assert TAUGHT in told.stdout, told.stdout + told.stderr


def test_evaluating_the_saved_model_gives_the_loss_of_its_training(sft, whole):
    done = sft("eval", str(whole), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["eval/loss"] == pytest.approx(logged(whole, "eval/loss")[-1], abs=1e-5)


def test_the_check_passes_a_pretrained_model(sft, pretrained):
    done = sft("check", "--steps", "2", *pretrained, *SHORT, "train.effective_batch_size=6", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] != "fail"
