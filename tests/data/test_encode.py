"""Our rows against TRL's own preparation: the same ids and labels for ``assistant_only_loss=True``."""

import datasets
import numpy as np
import pytest
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from sft_experiments.data.encode import IGNORED, Encoder
from sft_experiments.data.formats import Conversation, Origin
from sft_experiments.data.template import shipped_template
from sft_experiments.schema import TrainOn
from tests.data.conftest import chat, encoded
from tests.data.test_template import matrix

ROWS = [
    chat("one two", "three"),
    chat("be brief", "what is it ?", "naïve ☕ text\nin lines  ", roles="sua"),
    chat("a", "b", "c", "d", "e", "f"),
]
TEMPLATES = ["chatml", "qwen2_5", "qwen3_training", "llama3", "gemma3", "phi3", "cohere2", "deepseekv3", "gptoss"]


def trl_rows(tokenizer, rows, tmp_path):
    """SFTTrainer._prepare_dataset without a model."""
    trainer = SFTTrainer.__new__(SFTTrainer)
    trainer._tokenizer, trainer.chat_template = tokenizer, get_training_chat_template(tokenizer)
    trainer.completion_only_loss, trainer._is_vision_dataset = False, False
    arguments = SFTConfig(str(tmp_path), max_length=4096, assistant_only_loss=True, use_cpu=True, bf16=False)
    prepared = trainer._prepare_dataset(datasets.Dataset.from_list(rows), tokenizer, arguments, False, None, "train")
    return [(row["input_ids"], row["labels"]) for row in prepared]


def our_rows(tokenizer, rows):
    conversations = [Conversation(row["messages"], Origin("rows", n)) for n, row in enumerate(rows, 1)]
    return [
        (r.input_ids.tolist(), r.labels.tolist()) for r in Encoder(tokenizer, TrainOn.assistant).encode(conversations)
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_labels_are_trls(name, tmp_path):
    tokenizer = matrix.build_tokenizer(shipped_template(name))
    assert our_rows(tokenizer, ROWS) == trl_rows(tokenizer, ROWS, tmp_path)


def test_the_demo_rows_are_trls(tokenizer, tmp_path):
    from sft_experiments.data.sources import generate_demo_rows

    rows = generate_demo_rows("train", num_train=140, num_validation=0, seed=0)
    messages = [{"messages": row["messages"]} for row in rows]
    assert our_rows(tokenizer, messages) == trl_rows(tokenizer, messages, tmp_path)


def test_plain_text_supervises_everything_and_ends_with_the_end_token(tokenizer):
    row = encoded(Encoder(tokenizer, TrainOn.all), Conversation([], Origin("rows", 1), text="sort: 3 1"))
    assert row.labels.tolist() == row.input_ids.tolist()
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.num_supervised() == len(row.input_ids) - 1  # nothing predicts the first token


def test_train_on_all_supervises_every_turn(tokenizer):
    row = encoded(Encoder(tokenizer, TrainOn.all), Conversation(ROWS[0]["messages"], Origin("rows", 1)))
    assert not np.any(row.labels == IGNORED)


def test_a_batch_that_mixes_text_and_chat_keeps_the_order(tokenizer):
    rows = [
        Conversation([], Origin("rows", 1), text="sort: 3 1"),
        Conversation(ROWS[0]["messages"], Origin("rows", 2)),
        Conversation([], Origin("rows", 3), text="last"),
    ]
    encoded = Encoder(tokenizer, TrainOn.assistant).encode(rows)
    assert [row.conversation.origin.row for row in encoded] == [1, 2, 3]
    assert tokenizer.decode(encoded[2].input_ids) == "last<|end|>"


def test_a_slow_tokenizer_is_refused(tokenizer):
    from sft_experiments.errors import ModelError

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="slow tokenizer"):
        Encoder(Slow(), TrainOn.assistant)
