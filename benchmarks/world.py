"""What all contenders train: a tiny model with its tokenizer, and chats, all generated here; and the peers' commands.

The model is the 0.6M one of benchmarks/training_step.py (a Llama of width 64, vocabulary 8192). The chats are of
log-normal length: `chats` about 190 tokens on average, like those of C3, `short` about 25, like those of the demo.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import python, sft, trl

VOCABULARY = 8192
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
LENGTHS = {"chats": (3.7, 4.6), "short": (2.2, 2.2)}  # of question and answer: mean logarithm of the words
SYLLABLES = ("ka", "to", "mi", "ra", "ne", "so", "lu", "ve", "chi", "mon", "ter", "ing", "al", "ex", "pro", "con", "un")


@dataclass(frozen=True)
class Job:
    """One training, the same for every contender: fp32, AdamW, constant learning rate, loss on the answers."""

    steps: int = 20
    batch: int = 8  # the recommended one of the size class
    learning_rate: float = 1e-3
    max_length: int = 1024  # longer than every chat: nothing is cut or dropped
    device: str = "cpu"  # or cuda


@dataclass(frozen=True)
class World:
    """Files on disk."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def environment(self) -> dict[str, str]:
        """Caches of our own, so that no contender profits from what happens to lie in the user's."""
        return {"HF_HOME": str(self.root / "hf"), "SFT_CACHE_DIR": str(self.root / "cache")}


def build_world(root: Path, lengths: str = "chats", rows: int = 240, validation_rows: int = 24) -> World:
    """Write model, tokenizer and chats. The same arguments give the same files."""
    world = World(root)
    rng = random.Random(0)
    words = sorted({"".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 4))) for _ in range(9000)})
    rng.shuffle(words)
    chats = list(_chats(rows + validation_rows, LENGTHS[lengths], words, rng))
    world.data.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", chats[validation_rows:]), ("validation", chats[:validation_rows])):
        lines = (json.dumps({"messages": chat}) + "\n" for chat in part)
        (world.data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    _write_model(world.model, words)
    return world


def _chats(
    count: int, lengths: tuple[float, float], words: list[str], rng: random.Random
) -> Iterator[list[dict[str, str]]]:
    """Words are drawn by Zipf's law."""
    weights = [1 / rank for rank in range(1, len(words) + 1)]

    def text(mean_log: float) -> str:
        length = min(400, max(4, int(rng.lognormvariate(mean_log, 0.7))))
        return " ".join(rng.choices(words, weights, k=length))

    for _ in range(count):
        asked, answered = map(text, lengths)
        yield [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _write_model(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from benchmarks.training_step import build_model

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((f" {word}" for word in words), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    model = build_model("0.6M", "sdpa")
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)


# ---- the same job as every contender spells it


def our_settings(world: World, job: Job, output: Path) -> list[str]:
    """Evaluation once, at the end, and no samples: what the peers do too."""
    return [
        *("model=hub", f"model.name={world.model}", "dataset=messages", "logger=none", "scheduler=constant"),
        f"dataset.train_files={world.data}/train.jsonl",
        f"dataset.validation_files={world.data}/validation.jsonl",
        *(f"dataset.max_length={job.max_length}", f"output_dir={output}", f"compute.device={job.device}"),
        *(f"train.max_steps={job.steps}", f"train.eval_steps={job.steps}", "train.logging_steps=1"),
        *("train.eval_on_start=false", "train.precision=fp32", "train.weight_decay=0.01"),
        *("generation.num_samples=0", "monitor.terminal=quiet"),
    ]


def our_run(world: World, job: Job, output: Path) -> list[str | Path]:
    values = [f"train.learning_rate={job.learning_rate}", f"train.effective_batch_size={job.batch}"]
    return sft("train", *our_settings(world, job, output), *values)


def peer_arguments(job: Job, output: Path) -> dict[str, Any]:
    """Fields of SFTConfig."""
    return {
        "output_dir": str(output),
        "max_steps": job.steps,
        "per_device_train_batch_size": job.batch,
        "per_device_eval_batch_size": 16,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_length": job.max_length,
        "assistant_only_loss": True,
        "eval_strategy": "steps",
        "eval_steps": job.steps,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": job.device == "cpu",
        "seed": 42,
        "data_seed": 42,
        "report_to": "none",
        "disable_tqdm": True,
    }


def trl_run(world: World, job: Job, output: Path) -> list[str | Path]:
    arguments = [f"--{name}={value}" for name, value in peer_arguments(job, output).items()]
    data = [f"--dataset_name={world.data}", "--dataset_test_split=validation"]
    return trl("sft", f"--model_name_or_path={world.model}", *data, *arguments)


def script_run(world: World, job: Job, output: Path) -> list[str | Path]:
    settings = json.dumps({"model": str(world.model), "data": str(world.data), **asdict(job), "output": str(output)})
    return python("-m", "benchmarks.plain_trl", settings)


# ---- the equality gate


def our_losses(output: Path) -> dict[tuple[float, int], list[float]]:
    """(Learning rate, batch) of each run -> training loss of each step."""
    losses = {}
    for file in sorted(output.rglob("metrics.jsonl")):
        train = json.loads((file.parent / "record.json").read_text())["config"]["train"]
        events = map(json.loads, file.read_text().splitlines())
        key = (train["learning_rate"], train["effective_batch_size"])
        losses[key] = [event["train/loss"] for event in events if "train/loss" in event]
    return losses


def peer_losses(output: Path) -> list[float]:
    """Training loss of each step."""
    return [event["loss"] for event in peer_events(output) if "loss" in event]


def peer_events(output: Path) -> list[dict[str, float]]:
    """What a run of TRL has logged, from its last checkpoint."""
    newest = max(output.rglob("trainer_state.json"), key=lambda file: file.stat().st_mtime)
    events: list[dict[str, float]] = json.loads(newest.read_text())["log_history"]
    return events


def check_same_losses(ours: list[float], peer: list[float], tolerance: float = 2e-3) -> float:
    """The largest difference of any step. Raises AssertionError when it is above the tolerance."""
    assert len(ours) == len(peer) > 0, (len(ours), len(peer))
    difference = max(abs(a - b) for a, b in zip(ours, peer, strict=True))
    assert difference < tolerance, (difference, ours, peer)
    return difference
