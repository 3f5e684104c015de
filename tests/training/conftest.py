"""A random tiny Llama, a tokenizer trained on generated text, and chat-like rows: all built here, no network."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 320
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny matrices gain nothing from threads, and sums keep one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with chat markers: pad is <|endoftext|>, end of turn is <|im_end|>."""
    draw = random.Random(0)
    syllables = ["ka", "to", "mi", "ra", "ne", "so", "lu", "ve", "pi", "da"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(400)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(draw.choices(words, k=8)) for _ in range(200)], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LlamaForCausalLM]:
    """Build a two-layer Llama with grouped query heads; equal arguments give equal weights."""

    def build(attention: str = "sdpa", seed: int = 0, **changes: Any) -> LlamaForCausalLM:
        settings = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "bos_token_id": None,
        }
        torch.manual_seed(seed)
        config = LlamaConfig(**{**settings, **changes}, attn_implementation=attention)
        return LlamaForCausalLM(config)

    return build


@pytest.fixture(scope="session")
def tiny_rows() -> Callable[..., Dataset]:
    """Tokenized rows of 6 to 40 tokens. The labels cover the second half, or all tokens with ``supervise_all``."""

    def build(count: int = 24, seed: int = 0, supervise_all: bool = False) -> Dataset:
        draw = random.Random(seed)
        rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for _ in range(count):
            length = draw.randint(6, 40)
            ids = [draw.randrange(3, VOCABULARY) for _ in range(length)]
            masked = 0 if supervise_all else length // 2
            rows["input_ids"].append(ids)
            rows["labels"].append([-100] * masked + ids[masked:])
        return Dataset.from_dict(rows)

    return build
