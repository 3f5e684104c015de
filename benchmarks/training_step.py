"""C3: training steps on packed chats, against TRL with the same settings, TRL tuned by hand, and the plain HF Trainer.

Every contender trains the same documents once. ``python -m benchmarks.training_step`` writes
benchmarks/results/training_step.json and prints the table. ``--litgpt PYTHON`` adds LitGPT, which wants an environment
of its own (``python -m venv litgpt && litgpt/bin/pip install torch litgpt``; its interpreter is PYTHON). Before
anything is timed, an equality gate: same loss, same gradient norm and same number of tokens as TRL, and no document may
see another.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from benchmarks.harness import cpu_seconds, measure, table, write_result
from benchmarks.processes import REPOSITORY
from sft_experiments.training.attention import PACKED
from sft_experiments.training.trainer import ExperimentTrainer

VOCABULARY = 8192
SIZES = {  # label: width, layers, heads, key heads, inner width, tokens of the benchmark
    "0.6M": (64, 2, 4, 2, 176, 4096),
    "5M": (256, 4, 8, 4, 688, 2048),
    "27M": (512, 8, 8, 4, 1376, 2048),
}


@dataclass(frozen=True)
class Contender:
    """One way to train the documents."""

    trainer: type[Trainer]
    batch: int
    attention: str = "sdpa"
    packed: bool = True
    padding_free: bool = False
    checkpointing: bool = False
    grouped: bool = False


CONTENDERS = {
    "ours, packed, batch 2": Contender(ExperimentTrainer, 2, PACKED),
    "ours, unpacked, no padding": Contender(ExperimentTrainer, 8, PACKED, packed=False, padding_free=True),
    "ours, unpacked, padded": Contender(ExperimentTrainer, 8, packed=False),
    "TRL, packed, batch 2": Contender(SFTTrainer, 2),
    "TRL, packed, batch 2, its defaults": Contender(SFTTrainer, 2, checkpointing=True),
    "TRL, packed, batch 1": Contender(SFTTrainer, 1),
    "TRL, packed, batch 4": Contender(SFTTrainer, 4),
    "TRL, unpacked, batch 8": Contender(SFTTrainer, 8, packed=False),
    "TRL, unpacked, grouped by length": Contender(SFTTrainer, 8, packed=False, grouped=True),
    "HF Trainer, packed, batch 2": Contender(Trainer, 2),
}
SLOW = {
    "ours, unpacked, padded",
    "TRL, packed, batch 2, its defaults",
    "TRL, packed, batch 4",
    "TRL, unpacked, batch 8",
}
LITGPT = {"LitGPT, batch 8": 8, "LitGPT, batch 8, one by one": 1}  # rows of a micro-batch; it cannot pack
GATE_ROWS = 4  # whose loss before training LitGPT must give too
SAME = ("ours, packed, batch 2", "TRL, packed, batch 2")


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """CPU and wall seconds from the first step to the end of the epoch."""

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = cpu_seconds(), time.perf_counter()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = cpu_seconds() - self.start[0], time.perf_counter() - self.start[1]


def build_model(size: str, attention: str) -> LlamaForCausalLM:
    width, layers, heads, key_heads, inner, _ = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config)


def build_documents(tokens: int, length: int) -> Dataset:
    """Random token ids with the lengths of short chats: log-normal, mean 180; the last 70% are supervised."""
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    while tokens > 0:
        size = int((torch.randn((), generator=generator) * 0.7 + 4.95).exp().clamp(16, min(length, max(16, tokens))))
        ids = torch.randint(3, VOCABULARY, (size,), generator=generator).tolist()
        prompt = int(size * 0.3)
        rows["input_ids"].append(ids)
        rows["labels"].append([-100] * prompt + ids[prompt:])
        tokens -= size
    return Dataset.from_dict(rows)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Only its special tokens matter: the rows are token ids."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def build_trainer(how: Contender, size: str, bf16: bool, documents: Dataset, length: int, folder: str) -> Trainer:
    """Learning rate 1e-3, AdamW, no accumulation, documents in the order of the sampler with seed 0."""
    rows = pack_dataset(documents, length, "bfd") if how.packed else documents
    common: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": bf16,
        "per_device_train_batch_size": how.batch,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "activation_checkpointing": how.checkpointing,
        "train_sampling_strategy": "group_by_length" if how.grouped else "random",
        "seed": 0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    model = build_model(size, how.attention)
    if how.trainer is Trainer:
        collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=how.packed)
        args = TrainingArguments(**common, remove_unused_columns=False)
        trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate)
    else:
        limit = None if how.padding_free else length
        data = {"packing": how.packed, "padding_free": how.padding_free, "max_length": limit}
        args = SFTConfig(**common, **data, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = how.trainer(model=model, args=args, train_dataset=rows, processing_class=build_tokenizer())
    trainer.remove_callback(PrinterCallback)
    return trainer


def epoch(build: Callable[[], Trainer]) -> Callable[[], tuple[float, float]]:
    """A contender that times itself: building model, trainer and packed rows does not count."""

    def run() -> tuple[float, float]:
        trainer, clock = build(), Clock()
        trainer.add_callback(clock)
        trainer.train()
        return clock.seconds

    return run


def check_equality(size: str, bf16: bool, build: Callable[[Contender], Trainer]) -> dict[str, Any]:
    """Ours against TRL with the same settings, step by step; raises AssertionError when results differ."""
    histories = []
    for name in SAME:
        trainer = build(CONTENDERS[name])
        trainer.train()
        histories.append([event for event in trainer.state.log_history if "loss" in event])
    ours, theirs = histories
    assert [event["num_tokens"] for event in ours] == [event["num_tokens"] for event in theirs]
    loss = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))
    norm = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(ours, theirs, strict=True))
    assert loss < (2e-2 if bf16 else 1e-4) and norm < (5e-2 if bf16 else 1e-3), (loss, norm)
    first = abs(ours[0]["loss"] - theirs[0]["loss"])
    assert first < (2e-3 if bf16 else 2e-6), first
    check_no_leak(build_model(size, PACKED).eval())
    return {"first_loss_difference": first, "largest_loss_difference": loss, "largest_norm_difference": norm}


def check_no_leak(model: LlamaForCausalLM) -> None:
    """Another first document must not change one bit of the second; on the model's device."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    second = list(range(100, 150))
    rows = [{"input_ids": [*first, *second], "seq_lengths": [40, 50]} for first in (range(3, 43), range(50, 90))]
    batches = [{k: v.to(model.device) if hasattr(v, "to") else v for k, v in collate([row]).items()} for row in rows]
    with torch.no_grad():
        logits = [model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0, 40:] for batch in batches]
    assert torch.equal(*logits), "a document sees another"


class LitGPT:
    """The peer that trains in a Python of its own: its files, and its epochs."""

    def __init__(self, interpreter: str, folder: Path, size: str, bf16: bool, documents: Dataset) -> None:
        self.interpreter, self.folder, self.versions = interpreter, folder, set[str]()
        model = build_model(size, "sdpa")
        self.job = {**model.config.to_dict(), "bf16": bf16, "batch": 8}
        save_file({name: weight.detach() for name, weight in model.named_parameters()}, folder / "model.safetensors")
        (folder / "rows.json").write_text(json.dumps(documents.to_list()))
        (folder / "tokenizer.json").write_text(build_tokenizer().backend_tokenizer.to_str())
        first = DataCollatorForLanguageModeling(pad_token_id=0)(documents.select(range(GATE_ROWS)).to_list())
        with torch.no_grad():
            self.loss = model(**first).loss.item()

    def epoch(self, micro_batch: int) -> tuple[float, float]:
        """Its CPU and wall seconds. Raises AssertionError when it trains another model or other labels."""
        (self.folder / "job.json").write_text(json.dumps({**self.job, "micro_batch": micro_batch}))
        command = [self.interpreter, "-m", "benchmarks.litgpt_step", str(self.folder)]
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout
        told = json.loads(output.splitlines()[-1])
        assert abs(told["first_loss"] - self.loss) < (2e-2 if self.job["bf16"] else 1e-5), (told, self.loss)
        self.versions.add(told["version"])
        return told["cpu"], told["wall"]


def run_case(
    size: str, bf16: bool, length: int, repeats: int, names: list[str], litgpt: str | None = None
) -> dict[str, Any]:
    documents = build_documents(SIZES[size][-1], length)
    tokens = sum(len(ids) for ids in documents["input_ids"])
    with tempfile.TemporaryDirectory() as folder:

        def build(how: Contender) -> Trainer:
            return build_trainer(how, size, bf16, documents, length, folder)

        gate = check_equality(size, bf16, build)
        selected = {name: CONTENDERS[name] for name in names}
        works = {name: epoch(lambda how=how: build(how)) for name, how in selected.items()}  # type: ignore[misc]
        if litgpt:
            peer = LitGPT(litgpt, Path(folder), size, bf16, documents)
            works |= {name: lambda rows=rows: peer.epoch(rows) for name, rows in LITGPT.items()}  # type: ignore[misc]
        measured = measure(works, repeats)
    rates = {name: tokens / result.cpu_median for name, result in measured.items()}
    best = max((name for name in rates if not name.startswith("ours")), key=rates.__getitem__)
    return {
        "size": size,
        "dtype": "bf16" if bf16 else "fp32",
        "tokens": tokens,
        "documents": len(documents),
        "equality": gate,
        "litgpt": sorted(peer.versions) if litgpt else None,
        "tokens_per_cpu_second": rates,
        "times_same_settings": rates[SAME[0]] / rates[SAME[1]],
        "best_peer": best,
        "times_best_peer": max(rates[name] for name in rates if name.startswith("ours")) / rates[best],
        "runs": {name: result.as_dict() for name, result in measured.items()},
    }


def print_case(case: dict[str, Any]) -> None:
    print(f"\n{case['size']} {case['dtype']}: {case['documents']} documents, {case['tokens']} tokens, one epoch")
    base = case["tokens_per_cpu_second"][SAME[0]]
    rows = [
        (name, round(rate), run["cpu_median"], run["wall_median"], f"{base / rate:.2f}")
        for (name, rate), run in zip(case["tokens_per_cpu_second"].items(), case["runs"].values(), strict=True)
    ]
    print(table(("contender", "tokens per CPU second", "CPU s", "wall s", "times slower than ours"), rows))
    print(f"x{case['times_same_settings']:.2f} same settings, x{case['times_best_peer']:.2f} {case['best_peer']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--length", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--litgpt", metavar="PYTHON", help="an interpreter with LitGPT: adds it to the peers")
    parser.add_argument("--name", default="training_step", help="of the result file")
    parser.add_argument("--few", action="store_true", help="without the settings of TRL that are slow at every size")
    options = parser.parse_args()
    names = [name for name in CONTENDERS if not (options.few and name in SLOW)]
    torch.set_num_threads(1)
    cases = []
    for size in options.sizes:
        for dtype in options.dtypes:
            cases.append(run_case(size, dtype == "bf16", options.length, options.repeats, names, options.litgpt))
            print_case(cases[-1])
            write_result(options.name, {"length": options.length, "repeats": options.repeats, "cases": cases})


if __name__ == "__main__":
    main()
