"""The loss head gives the loss and gradients of stock TRL, whatever the batch looks like."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from sft_experiments.runs.plan_file import Choice
from sft_experiments.training import loss_head
from sft_experiments.training import trainer as trainer_module
from sft_experiments.training.loss_head import (
    LABELLED_ROWS,
    OWN_FORWARD,
    TRL_FUSED,
    add_loss_head,
    choose_loss_head,
    proven,
    rows_loss,
)
from sft_experiments.training.trainer import ExperimentTrainer
from tests.training.trainer_setup import make_trainer, small_config

Build = Callable[..., Any]


def _trainer(kind: type[SFTTrainer], *parts: Any, **changes: Any) -> SFTTrainer:
    """Two micro-batches per step, gradients neither clipped nor applied."""
    trainer = make_trainer(kind, *parts, **{"gradient_accumulation_steps": 2, "max_grad_norm": 0.0, **changes})
    assert kind is SFTTrainer or trainer.loss_head.value == LABELLED_ROWS
    return trainer


def _loss_and_gradients(trainer: SFTTrainer, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, torch.Tensor]]:
    """One optimizer step; the gradients are read just before it."""
    gradients: dict[str, torch.Tensor] = {}
    norm = trainer._get_grad_norm

    def keep(model: Any, grad_norm: Any = None) -> Any:
        gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        return norm(model, grad_norm=grad_norm)

    monkeypatch.setattr(trainer, "_get_grad_norm", keep)
    trainer.train()
    return next(event["loss"] for event in trainer.state.log_history if "loss" in event), gradients


def _assert_equal(ours: tuple[float, dict[str, Any]], theirs: tuple[float, dict[str, Any]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-6)
    assert ours[1].keys() == theirs[1].keys() and ours[1]
    for name, gradient in theirs[1].items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert ((ours[1][name] - gradient).abs().max() / scale).item() < 1e-5, name


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="padded, accumulated"),
        pytest.param({"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}, id="one micro-batch"),
        pytest.param({"packing": True, "max_length": 64}, id="packed"),
        pytest.param({"activation_checkpointing": True}, id="activation checkpointing"),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_those_of_stock_trl(
    changes: dict[str, Any],
    tied: bool,
    tiny_model: Build,
    tiny_rows: Build,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for kind in (ExperimentTrainer, SFTTrainer):
        model = tiny_model(tie_word_embeddings=tied)
        trainer = _trainer(kind, model, tiny_rows(), tiny_tokenizer, tmp_path, **changes)
        results.append(_loss_and_gradients(trainer, monkeypatch))
    _assert_equal(*results)


def test_assistant_only_loss_equals_that_of_stock_trl(
    tiny_model: Build, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    turns = [
        [{"role": "user", "content": f"kato {n} miranes?"}, {"role": "assistant", "content": f"solu {n * 7} veda."}]
        for n in range(16)
    ]
    results = []
    for kind in (ExperimentTrainer, SFTTrainer):
        rows = Dataset.from_dict({"messages": turns})
        trainer = _trainer(kind, tiny_model(), rows, tiny_tokenizer, tmp_path, assistant_only_loss=True)
        results.append(_loss_and_gradients(trainer, monkeypatch))
    _assert_equal(*results)


def test_lora_gradients_equal_those_of_stock_trl_and_the_frozen_head_gets_none(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for kind in (ExperimentTrainer, SFTTrainer):
        torch.manual_seed(1)
        model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        trainer = _trainer(kind, model, tiny_rows(), tiny_tokenizer, tmp_path)
        results.append(_loss_and_gradients(trainer, monkeypatch))
    _assert_equal(*results)
    assert all("lora_" in name for name in results[0][1])


@pytest.mark.parametrize("model_type", ["gemma", "mixtral"])
def test_the_fallback_to_the_head_of_trl_trains_like_stock_trl(
    model_type: str, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gemma: the choice of a GPU; mixtral: with the load-balancing loss of its experts."""
    choice = Choice(TRL_FUSED, "as on a GPU")
    monkeypatch.setattr(trainer_module, "choose_loss_head", lambda *_: choice)
    results = []
    for kind in (ExperimentTrainer, SFTTrainer):
        torch.manual_seed(0)
        experts = {"num_local_experts": 2, "router_aux_loss_coef": 0.1, "output_router_logits": True}
        config = small_config(model_type, **(experts if model_type == "mixtral" else {}))
        model = AutoModelForCausalLM.from_config(config)
        trainer = make_trainer(kind, model, tiny_rows(), tiny_tokenizer, tmp_path, gradient_accumulation_steps=2)
        assert trainer.aux_loss_enabled == (model_type == "mixtral")
        results.append(_loss_and_gradients(trainer, monkeypatch))
    ours, theirs = results
    if model_type == "mixtral":  # theirs includes the load-balancing loss; ours stays comparable between models
        assert 0.05 < theirs[0] - ours[0] < 1.0
        ours = (theirs[0], ours[1])
    _assert_equal(ours, theirs)


@pytest.mark.parametrize("with_bias", [True, False])
def test_blocks_sum_to_plain_cross_entropy(with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_head, "ROWS_PER_BLOCK", 7)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(50, 16), torch.randn(90, 16), torch.randn(90)
    targets = torch.randint(0, 90, (50,))
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    again = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    nats, num_correct = rows_loss(leaves[0], leaves[1], leaves[2] if with_bias else None, targets)
    logits = F.linear(again[0], again[1], again[2] if with_bias else None)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    (nats * 0.3).backward()
    (expected * 0.3).backward()
    torch.testing.assert_close(nats, expected)
    assert num_correct.item() == (logits.argmax(-1) == targets).sum().item()
    for ours, theirs in zip(leaves[: 2 + with_bias], again, strict=False):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_a_batch_without_labels_gives_zero_and_zero_gradients() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(9, 8, requires_grad=True)
    nats, _ = rows_loss(hidden[torch.zeros(4, dtype=torch.bool)], weight, None, torch.empty(0, dtype=torch.long))
    nats.backward()
    assert nats.item() == 0 and not hidden.grad.any() and not weight.grad.any()


def test_a_nan_in_the_weights_reaches_the_loss() -> None:
    nats, _ = rows_loss(torch.full((3, 8), torch.nan), torch.randn(9, 8), None, torch.tensor([1, 2, 3]))
    assert torch.isnan(nats)


def test_bf16_autocast_stays_within_bf16_rounding_of_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(300, 64), torch.randn(500, 64) / 8, torch.randint(0, 500, (300,))
    exact, _ = rows_loss(hidden, weight, None, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = rows_loss(hidden, weight, None, targets)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-3)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("gemma2", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ("cohere", {"logit_scale": 0.0625}, "logit_scale=0.0625"),
        ("mixtral", {"output_router_logits": True}, "experts"),
    ],
)
def test_models_that_change_their_logits_keep_the_head_of_trl(
    model_type: str, changes: dict[str, Any], reason: str
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**sizes, **heads, **changes})
    chosen = choose_loss_head(AutoModelForCausalLM.from_config(config), "cpu")
    assert chosen.value == TRL_FUSED and reason in chosen.reason


def test_the_choice_names_its_reason(tiny_model: Build) -> None:
    assert choose_loss_head(tiny_model(), "cpu").value == LABELLED_ROWS
    assert "cuda" in choose_loss_head(tiny_model(), "cuda").reason
    assert "sharded" in choose_loss_head(tiny_model(), "cpu", sharded=True).reason


def test_an_adapted_output_layer_keeps_the_head_of_trl(tiny_model: Build) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model(tie_word_embeddings=False), adapter).get_base_model()
    chosen = choose_loss_head(model, "cpu")
    assert chosen.value == TRL_FUSED and "not a plain Linear" in chosen.reason


OTHER_HEADS = {
    # A prediction head, or a shift, stands between the last hidden states and the output layer.
    "modernbert-decoder": {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
    "electra": {"is_decoder": True, "embedding_size": 16},
    "roberta": {"is_decoder": True, "max_position_embeddings": 128},
}


@pytest.mark.parametrize("model_type", OTHER_HEADS)
def test_a_model_that_does_more_than_its_output_layer_is_trained_by_its_own_forward(
    model_type: str, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(model_type, **OTHER_HEADS[model_type]))
    trainer = make_trainer(
        ExperimentTrainer, model, tiny_rows(), tiny_tokenizer, tmp_path, eval_rows=tiny_rows(9, seed=5)
    )
    assert trainer.loss_head.value == OWN_FORWARD
    assert "labelled_rows has a loss of" in trainer.loss_head.reason or "fails on it" in trainer.loss_head.reason
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    nats, count = 0.0, 0
    model.eval()
    for batch in trainer.get_eval_dataloader():
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1].flatten(0, 1).float()
        nats += float(torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum"))
        count += int((labels[:, 1:] != -100).sum())
    assert loss == pytest.approx(nats / count, rel=1e-5)


def test_a_head_that_fails_on_a_model_gives_way_to_the_next(tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    add_loss_head(model)
    monkeypatch.setattr(loss_head, "rows_loss", lambda *_: 1 / 0)
    choice = proven(model, choose_loss_head(model, "cpu"))
    assert choice.value == TRL_FUSED and "labelled_rows fails on it (ZeroDivisionError" in choice.reason


def test_other_gradients_are_seen_where_the_loss_is_equal(tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    add_loss_head(model)
    monkeypatch.setattr(loss_head, "rows_loss", lambda hidden, *rest: rows_loss(hidden.detach() + 0 * hidden, *rest))
    choice = proven(model, choose_loss_head(model, "cpu"))
    assert choice.value == OWN_FORWARD and "other gradients" in choice.reason


def test_asking_changes_neither_the_mode_of_the_model_nor_the_random_state(tiny_model: Build) -> None:
    model = tiny_model().train()
    add_loss_head(model)
    before = torch.get_rng_state()
    assert proven(model, choose_loss_head(model, "cpu")).value == LABELLED_ROWS
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_cannot_be_asked_is_said_to_be_unproven(
    tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    choice = choose_loss_head(model, "cpu")
    monkeypatch.setattr(model, "forward", lambda **_: 1 / 0)
    assert "not proven, the model cannot be asked: ZeroDivisionError" in proven(model, choice).reason
