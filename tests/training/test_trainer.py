"""What the trainer reports is true, and what it stops never touches the weights."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTTrainer

from sft_experiments.errors import ConfigError, DataError, TrainingFailed
from sft_experiments.training.attention import ignores_padding
from sft_experiments.training.trainer import ExperimentTrainer
from tests.training.trainer_setup import CAUSAL, make_trainer, small_config

Build = Callable[..., Any]


def _true_means(model: Any, rows: Dataset) -> tuple[float, float]:
    """Nats and accuracy per supervised token, one row at a time through the plain model."""
    nats, correct, count = 0.0, 0, 0
    model.eval()
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"])[1:]
        kept = targets != -100
        nats += F.cross_entropy(logits[kept], targets[kept], reduction="sum").item()
        correct += int((logits[kept].argmax(-1) == targets[kept]).sum())
        count += int(kept.sum())
    return nats / count, correct / count


# ---- training loss


def test_the_training_loss_is_a_mean_over_the_tokens_of_all_steps_since_the_last_event(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = tiny_rows(16)
    trainer = make_trainer(
        ExperimentTrainer, tiny_model(), rows, tiny_tokenizer, tmp_path, max_steps=4, logging_steps=4
    )
    trainer.train()
    event = next(event for event in trainer.state.log_history if "loss" in event)
    loss, accuracy = _true_means(tiny_model(), rows)
    assert event["loss"] == pytest.approx(loss, abs=1e-6)
    assert event["mean_token_accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_the_training_loss_does_not_depend_on_accumulation(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    losses = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = make_trainer(
            ExperimentTrainer,
            tiny_model(),
            tiny_rows(32),
            tiny_tokenizer,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            max_steps=4,
        )
        trainer.train()
        losses.append([event["loss"] for event in trainer.state.log_history if "loss" in event])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and losses[2] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_tokens_are_counted_without_padding(
    packing: bool, tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = tiny_rows(16)
    changes = {"packing": True, "max_length": 64} if packing else {}
    trainer = make_trainer(
        ExperimentTrainer,
        tiny_model(),
        rows,
        tiny_tokenizer,
        tmp_path,
        max_steps=-1,
        num_train_epochs=2,
        **changes,
    )
    trainer.train()
    events = [event for event in trainer.state.log_history if "loss" in event]
    assert events[-1]["num_tokens"] == 2 * sum(len(ids) for ids in rows["input_ids"])
    supervised = sum(label != -100 for labels in rows["labels"] for label in labels[1:])
    assert sum(event["num_supervised_tokens"] for event in events) == 2 * supervised


def test_the_token_count_goes_on_after_a_resume(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-2}
    whole = make_trainer(
        ExperimentTrainer, tiny_model(), tiny_rows(), tiny_tokenizer, tmp_path / "a", max_steps=6, **changes
    )
    whole.train()
    resumed = make_trainer(
        ExperimentTrainer, tiny_model(), tiny_rows(), tiny_tokenizer, tmp_path / "b", max_steps=6, **changes
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    last, again = (
        [event for event in trainer.state.log_history if "loss" in event][-1] for trainer in (whole, resumed)
    )
    assert again["num_tokens"] == last["num_tokens"]
    assert again["loss"] == last["loss"]


# ---- evaluation


def test_the_eval_loss_does_not_depend_on_the_eval_batch_size(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = tiny_rows(33, seed=3)
    losses: list[dict[str, float]] = []
    stock: list[dict[str, float]] = []
    for size in (1, 2, 4, 8, 16, 32):
        for kind, results in ((ExperimentTrainer, losses), (SFTTrainer, stock)):
            trainer = make_trainer(
                kind,
                tiny_model(),
                tiny_rows(),
                tiny_tokenizer,
                tmp_path,
                eval_rows=rows,
                per_device_eval_batch_size=size,
            )
            results.append(trainer.evaluate())
    values = [metrics["eval_loss"] for metrics in losses]
    truth, accuracy = _true_means(tiny_model(), rows)
    assert max(values) - min(values) < 1e-5
    assert values[0] == pytest.approx(truth, abs=1e-6)
    assert losses[0]["eval_mean_token_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    upstream = [metrics["eval_loss"] for metrics in stock]
    assert max(upstream) - min(upstream) > 1e-4, "the stock trainer is exact now: drop our evaluation_loop"


def test_the_best_checkpoint_and_the_log_use_the_token_weighted_loss(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = tiny_rows(10, seed=3)
    trainer = make_trainer(
        ExperimentTrainer,
        tiny_model(),
        tiny_rows(),
        tiny_tokenizer,
        tmp_path,
        eval_rows=rows,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        max_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    seen: list[float] = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            seen.append(metrics["eval_loss"])

    trainer.add_callback(Watch())
    trainer.train()
    truth, _ = _true_means(tiny_model(), rows)
    logged = [event["eval_loss"] for event in trainer.state.log_history if "eval_loss" in event]
    assert trainer.state.best_metric == pytest.approx(truth, abs=1e-6)
    assert seen == logged == [trainer.state.best_metric]


def test_evaluation_between_log_events_leaves_the_training_loss_alone(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    events = []
    for extra in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_rows": tiny_rows(5, seed=9)}):
        trainer = make_trainer(
            ExperimentTrainer,
            tiny_model(),
            tiny_rows(),
            tiny_tokenizer,
            tmp_path,
            max_steps=4,
            logging_steps=4,
            learning_rate=1e-2,
            **extra,
        )
        trainer.train()
        events.append(next(event for event in trainer.state.log_history if "loss" in event))
    assert events[0]["loss"] == events[1]["loss"]


def test_one_non_finite_batch_makes_the_eval_loss_non_finite(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model()
    rows = tiny_rows(8)
    with torch.no_grad():
        model.get_input_embeddings().weight[rows[5]["input_ids"][0]] = torch.nan
    trainer = make_trainer(
        ExperimentTrainer,
        model,
        rows,
        tiny_tokenizer,
        tmp_path,
        eval_rows=rows,
        per_device_eval_batch_size=1,
        logging_nan_inf_filter=True,
    )
    assert not math.isfinite(trainer.evaluate()["eval_loss"])


def test_an_eval_set_without_supervised_tokens_is_an_error(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[-100, -100, -100]]})
    trainer = make_trainer(ExperimentTrainer, tiny_model(), tiny_rows(), tiny_tokenizer, tmp_path, eval_rows=rows)
    with pytest.raises(DataError, match="no supervised token"):
        trainer.evaluate()


# ---- divergence


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_non_finite_step_stops_the_run_before_it_reaches_weights_or_optimizer(
    max_grad_norm: float, tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    class Poison(TrainerCallback):
        """In step 3, one weight of the final norm becomes infinite for the forward pass."""

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.norm.weight[0] = torch.inf
                self.before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    poison = Poison()
    model = tiny_model()
    trainer = make_trainer(
        ExperimentTrainer,
        model,
        tiny_rows(),
        tiny_tokenizer,
        tmp_path,
        max_steps=6,
        learning_rate=1e-2,
        max_grad_norm=max_grad_norm,
    )
    trainer.add_callback(poison)
    with pytest.raises(TrainingFailed, match=r"step 3\b.*weights are those of step 2") as failure:
        trainer.train()
    assert failure.value.status == "diverged"
    assert all(torch.equal(weight, poison.before[name]) for name, weight in model.named_parameters())
    assert all(state["step"] == 2 for state in trainer.optimizer.state.values())


# ---- padding mask


@pytest.mark.parametrize("model_type", CAUSAL)
def test_right_padding_needs_no_attention_mask(
    model_type: str, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = small_config(model_type)
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = 9  # shorter than the rows
    config._attn_implementation = "eager" if model_type == "gemma2" else "sdpa"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    metrics = []
    for drop in (True, False):
        trainer = make_trainer(
            ExperimentTrainer, model, tiny_rows(), tiny_tokenizer, tmp_path, eval_rows=tiny_rows(9, seed=5)
        )
        assert trainer.drops_padding_mask
        trainer.drops_padding_mask = drop
        trainer.train()
        event = next(event for event in trainer.state.log_history if "loss" in event)
        metrics.append((event["loss"], event["grad_norm"], trainer.evaluate()["eval_loss"]))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


@pytest.mark.parametrize(("model_type", "expected"), [("bert", False), ("mamba", True), ("bloom", True)])
def test_whether_padding_needs_its_mask_is_asked_of_the_model(model_type: str, expected: bool) -> None:
    changes: dict[str, dict[str, Any]] = {"bert": {"is_decoder": False}, "bloom": {"n_head": 4, "n_layer": 2}}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(model_type, **changes.get(model_type, {})))
    assert ignores_padding(model) is expected


def test_a_model_that_cannot_be_asked_keeps_its_mask(tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(model, "forward", lambda **_: 1 / 0)
    assert not ignores_padding(model)


@pytest.mark.parametrize("changes", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_losses_that_are_not_cross_entropy_are_refused_by_name(
    changes: dict[str, Any], tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        make_trainer(ExperimentTrainer, tiny_model(), tiny_rows(), tiny_tokenizer, tmp_path, **changes)


def test_bf16_autocast_reports_the_loss_of_fp32_to_rounding(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    losses = []
    for bf16 in (True, False):
        trainer = make_trainer(ExperimentTrainer, tiny_model(), tiny_rows(), tiny_tokenizer, tmp_path, bf16=bf16)
        trainer.train()
        losses.append(next(event["loss"] for event in trainer.state.log_history if "loss" in event))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0] != losses[1]
