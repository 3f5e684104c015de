"""What the GPU suite trains, and how TRL trains it: models from a config, generated chats, a trainer for each way."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, Trainer
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from benchmarks.training_step import build_tokenizer
from benchmarks.world import SPECIAL

MEAN_DOCUMENT = 400  # tokens, log-normal
PAD, USER, ASSISTANT, END = range(len(SPECIAL))  # ids
Chat = tuple[list[int], list[int]]  # token ids of the question and of the answer
LEARNING_RATE, LOGGING_STEPS, SEED = 1e-4, 5, 42
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}  # conf/peft/lora.yaml


@dataclass(frozen=True)
class Size:
    """A model, its rows, and the tokens per second wanted on one H200-class GPU."""

    shape: tuple[int, int, int, int, int]  # width, layers, heads, key heads, inner width
    vocabulary: int
    length: int  # tokens of a packed row
    batch: int  # packed rows of a step
    lora: bool = False  # then the base is in bf16
    tied: bool = True
    target: int = 0
    reserve: float = 45.0  # seconds that a contender may take: none starts with less left

    @property
    def config(self) -> dict[str, Any]:
        """Keys of transformers' LlamaConfig."""
        width, layers, heads, key_heads, inner = self.shape
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "intermediate_size": inner,
            "max_position_embeddings": self.length,
            "tie_word_embeddings": self.tied,
            "initializer_range": 0.02,
        }


@dataclass(frozen=True)
class Contender:
    """One way to train the documents with TRL."""

    packed: bool = True
    checkpointing: bool = False
    grouped: bool = False


def build_model(size: Size, device: str) -> LlamaForCausalLM:
    """Random weights, made on the device."""
    config = LlamaConfig(**size.config, pad_token_id=PAD, eos_token_id=END, bos_token_id=None, use_cache=False)
    config._attn_implementation = "sdpa"
    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if size.lora and device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def build_chats(size: Size, steps: int) -> list[Chat]:
    """Enough chats of random tokens for ``steps``; the first 30% of each are the question."""
    generator = torch.Generator().manual_seed(0)
    left, chats = int(size.length * size.batch * (steps + 2) * 1.05), []
    while left > 0:
        size_of = (torch.randn((), generator=generator) * 0.7).exp() * MEAN_DOCUMENT * 0.78  # exp(0.7 ** 2 / 2) = 1.28
        length = int(size_of.clamp(16, size.length)) - len(SPECIAL)
        ids = torch.randint(len(SPECIAL), size.vocabulary, (length,), generator=generator).tolist()
        asked = int(length * 0.3)
        chats.append((ids[:asked], ids[asked:]))
        left -= length
    return chats


def build_rows(size: Size, how: Contender, steps: int) -> Dataset:
    """The chats as tokens, with the loss on the answer and the end of its turn."""
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for question, answer in build_chats(size, steps):
        prompt = [USER, *question, END, ASSISTANT]
        rows["input_ids"].append([*prompt, *answer, END])
        rows["labels"].append([-100] * len(prompt) + [*answer, END])
    documents = Dataset.from_dict(rows)
    return pack_dataset(documents, size.length, "bfd") if how.packed else documents


def build_trainer(
    size: Size, how: Contender, rows: Dataset, steps: int, device: str, folder: str
) -> tuple[Trainer, list[int]]:
    """The trainer, and a list that fills with the real tokens of each step."""
    documents_per_row = max(1, size.length // MEAN_DOCUMENT)
    wanted: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": device == "cpu",
        "bf16": True,
        "per_device_train_batch_size": size.batch if how.packed else size.batch * documents_per_row,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "logging_steps": LOGGING_STEPS,
        "seed": SEED,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": size.length,
        "packing": how.packed,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        **spelled("activation_checkpointing", "gradient_checkpointing", how.checkpointing),
        **spelled("train_sampling_strategy", "", "group_by_length" if how.grouped else "random"),
        **spelled("group_by_length", "", how.grouped),
    }
    arguments = SFTConfig(**wanted)
    if arguments.n_gpu > 1:  # the Trainer would spread each batch over all of them
        arguments._n_gpu = 1
    trainer = SFTTrainer(
        model=build_model(size, device),
        args=arguments,
        train_dataset=rows,
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM") if size.lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, count_tokens(trainer)


def spelled(name: str, older: str, value: Any) -> dict[str, Any]:
    """An argument under the name that the installed version has, if any."""
    known = {field.name for field in fields(SFTConfig)}
    return next(({spelling: value} for spelling in (name, older) if spelling in known), {})


def count_tokens(trainer: Trainer) -> list[int]:
    """Counted where batches are put together, on the host: the device is not asked."""
    collate, counts = trainer.data_collator, []

    def counting(rows: list[dict[str, Any]]) -> dict[str, Any]:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        batch: dict[str, Any] = collate(rows)
        return batch

    trainer.data_collator = counting
    return counts
