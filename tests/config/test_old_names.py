"""Someone who types the names of a training script is told today's key."""

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.config.known_keys import OLD, schema_keys, todays_name
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import plan_run

TODAY = {
    "max_seq_length=512": "dataset.max_length",
    "torch_dtype=bfloat16": "train.precision",
    "evaluation_strategy=steps": "train.eval_steps",
    "logging_dir=logs": "tensorboard --logdir",
    "tokenizer=gpt2": "model.tokenizer",
    "gradient_accumulation_steps=4": "train.effective_batch_size",
    "warmup_ratio=0.1": "scheduler.warmup_ratio",
    "train.warmup_ratio=0.1": "scheduler.warmup_ratio",
    "+train.gradient_accumulation_steps=4": "train.effective_batch_size",
    "+max_seq_length=3": "dataset.max_length",
    "gradient_checkpointing=true": "train.activation_checkpointing",
    "num_epochs=3": "train.num_train_epochs",
    "report_to=wandb": "logger.trackers",
}


@pytest.mark.parametrize("typed", TODAY)
def test_an_old_name_is_answered_with_todays_key(typed: str) -> None:
    with pytest.raises(ConfigError, match="no such key; today: ") as refusal, composed([typed]) as composition:
        plan_run(composition)
    assert TODAY[typed] in str(refusal.value)


def test_every_key_that_the_table_names_exists() -> None:
    known = {*schema_keys()}
    named = {word.strip("(),") for answer in OLD.values() for word in answer.replace("=", " ").split() if "." in word}
    keys = {
        word for word in named if word.split(".")[0] in {"train", "dataset", "model", "peft", "logger", "scheduler"}
    }
    assert keys and {key for key in keys if key not in known and not key.startswith("train.extra.")} == set()


def test_a_key_that_is_right_is_not_called_old() -> None:
    assert todays_name("train.learning_rate") is None
