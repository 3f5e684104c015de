"""Under adapters the frozen weights are bf16 and what is trained is fp32: it moves, and its gradients stay right."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from sft_experiments.config.hydra import composed
from sft_experiments.launch.trial import Trial, plan_run
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import Choice, StepPlan
from sft_experiments.runs.record import Status, read_record
from sft_experiments.training.arguments import training_arguments
from sft_experiments.training.model import load_model, load_tokenizer
from sft_experiments.training.trainer import ExperimentTrainer, build_trainer
from sft_experiments.training.worker import run

SETTINGS = [
    "model=tiny", "logger=none", "compute.device=cpu", "compute.threads=1", "train.effective_batch_size=4",
    "scheduler=constant",
]  # fmt: skip
FEW_ROWS = [
    "dataset.demo.num_train=60", "dataset.demo.num_validation=20", "dataset.max_length=48", "generation.num_samples=0",
    "generation.exact_match_rows=0", "train.max_steps=4", "train.eval_steps=2",
]  # fmt: skip
SMALLEST_RATE = 2e-5  # at which bf16 weights do not move: docs/from-a-script.md
Adapt = Callable[..., ExperimentTrainer]


def planned(*overrides: str) -> Trial:
    with composed([*SETTINGS, *overrides]) as composition:
        return plan_run(composition)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of the demo's model, which can be quantised."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = planned().config
    tokenizer = load_tokenizer(config.model)
    load_model(config, tokenizer, "fp32", "sdpa").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapt(pretrained: Path, tmp_path: Path) -> Adapt:
    """``adapt("peft=lora", ...)``: a run's own trainer on twelve rows, three optimizer steps long."""

    def build(*overrides: str) -> ExperimentTrainer:
        trial = planned("model=hub", f"model.name={pretrained}", f"output_dir={tmp_path}", *overrides)
        config = trial.config
        steps = StepPlan(sequences=12, steps_per_epoch=3, total_steps=3, warmup_steps=0, last_group_examples=4)
        plan = replace(trial.plan, steps=steps, attention=Choice("sdpa", "a test"))
        config.train.extra = {"save_strategy": "no"}
        config.train.load_best_model_at_end = False
        config.peft.lora_dropout = 0.0
        tokenizer = load_tokenizer(config.model)
        model = load_model(config, tokenizer, plan.precision.value, plan.attention.value)
        arguments = training_arguments(config, plan, RunFolder(tmp_path), resumes=True)
        arguments.packing = False
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(5, len(tokenizer), (12, 24), generator=draw).tolist()
        rows = Dataset.from_dict({"input_ids": ids, "labels": [[-100] * 12 + row[12:] for row in ids]})
        return build_trainer(config, model, tokenizer, arguments, (rows, rows))

    return build


def trained(trainer: ExperimentTrainer) -> dict[str, torch.Tensor]:
    return {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16", "fp32"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_is_trained_is_fp32_and_what_is_frozen_as_the_precision_says(
    method: str, precision: str, adapt: Adapt
) -> None:
    trainer = adapt(f"peft={method}", f"train.precision={precision}")
    frozen = [one for one in trainer.model.parameters() if not one.requires_grad and one.is_floating_point()]
    assert frozen
    assert {one.dtype for one in frozen} == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert {one.dtype for one in trained(trainer).values()} == {torch.float32}
    assert all("lora_" in name for name in trained(trainer))
    assert trainer.args.bf16 is (precision != "fp32")


def test_without_adapters_everything_is_trained_in_fp32_under_bf16(adapt: Adapt) -> None:
    assert {one.dtype for one in adapt("train.precision=bf16").model.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_move_at_a_learning_rate_at_which_bf16_weights_stand_still(method: str, adapt: Adapt) -> None:
    trainer = adapt(f"peft={method}", "train.precision=bf16", f"train.learning_rate={SMALLEST_RATE}")
    with torch.no_grad():
        for name, one in trained(trainer).items():
            if "lora_B" in name:
                one.normal_(std=0.1)
    before = {name: one.detach().clone() for name, one in trained(trainer).items()}
    trainer.train()
    moved = torch.cat([(one != before[name]).flatten() for name, one in trained(trainer).items()])
    assert moved.float().mean() > 0.95
    rounded = torch.cat(
        [(one.bfloat16() != before[name].bfloat16()).flatten() for name, one in trained(trainer).items()]
    )
    assert rounded.float().mean() < 0.2


def gradients(trainer: ExperimentTrainer, monkeypatch: pytest.MonkeyPatch) -> tuple[float, torch.Tensor]:
    """Loss and all gradients of the first step, from adapters that are the same for every trainer."""
    draw, found = torch.Generator().manual_seed(1), []
    with torch.no_grad():
        for _, one in sorted(trained(trainer).items()):
            one.copy_(torch.randn(one.shape, generator=draw) * 0.1)
    norm = trainer._get_grad_norm

    def keep(model: Any, grad_norm: Any = None) -> Any:
        found.append(torch.cat([one.grad.flatten() for _, one in sorted(trained(trainer).items())]))
        return norm(model, grad_norm=grad_norm)

    monkeypatch.setattr(trainer, "_get_grad_norm", keep)
    trainer.train()
    loss = next(event["loss"] for event in trainer.state.log_history if "loss" in event)
    return loss, found[0]


def test_gradients_of_adapters_are_those_over_an_fp32_base_within_bf16(
    adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["peft=lora", "train.max_grad_norm=1e9", "train.logging_steps=1"]
    exact_loss, exact = gradients(adapt(*settings, "train.precision=fp32"), monkeypatch)
    loss, found = gradients(adapt(*settings, "train.precision=bf16"), monkeypatch)
    assert found.dtype == torch.float32
    assert loss == pytest.approx(exact_loss, rel=2e-3) and loss != exact_loss
    assert ((found - exact).norm() / exact.norm()).item() < 0.03  # bf16 has 8 bits: 0.004 for each rounding


def test_random_weights_in_bf16_are_those_in_fp32_rounded() -> None:
    """So that an adapter can be merged in fp32 into the base that it was trained on.

    torch draws the same in both formats only for tensors of a multiple of 16 values.
    """
    config = planned("peft=lora").config
    config.model.config |= {"hidden_size": 36, "num_attention_heads": 2, "num_key_value_heads": 1}
    tokenizer = load_tokenizer(config.model)
    wide, narrow = (load_model(config, tokenizer, precision, "sdpa") for precision in ("fp32", "bf16"))
    for (name, one), (_, other) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other), name
    for (name, one), (_, other) in zip(wide.named_buffers(), narrow.named_buffers(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other), name  # rotary frequencies


@pytest.fixture
def train_here(tmp_path: Path, sft_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``train_here(name, until)``: train a small demo run in this process, up to that share of its steps."""
    monkeypatch.setenv("SFT_CACHE_DIR", sft_environment["SFT_CACHE_DIR"])

    def train(name: str, *overrides: str, until: float | None = None) -> RunFolder:
        trial = planned(*FEW_ROWS, f"output_dir={tmp_path / name}", f"name={name}", *overrides)
        replace(trial, plan=replace(trial.plan, stop_at=until)).write()
        assert run(trial.folder) == 0
        return trial.folder

    return train


@pytest.mark.slow
def test_adapters_on_a_bf16_base_resume_to_the_weights_of_an_uninterrupted_run(train_here: Any) -> None:
    settings = ["peft=lora", "train.precision=bf16"]
    whole = train_here("whole", *settings)
    parts = train_here("parts", *settings, until=0.5)
    assert read_record(parts).status is Status.pruned
    train_here("parts", *settings)
    assert read_record(parts).attempts == 2
    uninterrupted, resumed = (load_file(one.model / "adapter_model.safetensors") for one in (whole, parts))
    assert {one.dtype for one in resumed.values()} == {torch.float32}
    assert all(torch.equal(one, resumed[name]) for name, one in uninterrupted.items())
