"""C4: preparing chats, rendered, masked, labelled and packed, against TRL's own preparation with one and two processes.

    python -m benchmarks.data_preparation [TOKENIZER_FOLDER] [--rows 20000]

The rows are generated: questions and answers as long as those of GSM8K (45 and 100 words on average). Without a folder
the demo tokenizer is used. Both sides start from a JSON Lines file, with empty caches, and end with input ids and
labels; ours includes the gate and the mask proof. Gate: unpacked rows are compared one by one, packed ones by their
number of tokens and how full they are.
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process is a core, for both

import datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from benchmarks.harness import measure, table, write_result
from sft_experiments.data.prepare import prepare_data
from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.schema import DatasetConfig, DataSource, Overlong, PackingStrategy, TrainOn

WORDS = "the a of and has had buys sells apples boxes each day week gives total then more than half twice left"
MAX_LENGTH = 4096


def write_rows(file: Path, count: int) -> None:
    """Questions of about 45 and answers of about 100 words, numbers among them."""
    rng, choices = random.Random(0), WORDS.split()

    def words(low: int, high: int) -> str:
        count = rng.randint(low, high)
        return " ".join(rng.choice(choices) if rng.random() < 0.8 else str(rng.randint(1, 999)) for _ in range(count))

    with file.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            user = {"role": "user", "content": words(25, 65)}
            assistant = {"role": "assistant", "content": words(50, 150)}
            stream.write(json.dumps({"messages": [user, assistant]}) + "\n")


def prepare_ours(file: Path, tokenizer: PreTrainedTokenizerBase, cache: Path, packs: bool) -> datasets.Dataset:
    settings = DatasetConfig(
        name="benchmark", source=DataSource.files, format="messages", train_files=[str(file)],
        validation_fraction=0.0, max_length=MAX_LENGTH, packing=PackingStrategy.bfd if packs else PackingStrategy.none,
        overlong=Overlong.drop, train_on=TrainOn.assistant, max_drop_fraction=0.1, train_split="train",
        verifiable_answers=False,
    )  # fmt: skip
    return prepare_data(settings, tokenizer, cache_dir=cache, show_progress=False).train


def prepare_trl(
    file: Path, tokenizer: PreTrainedTokenizerBase, cache: Path, packs: bool, processes: int | None
) -> datasets.Dataset:
    """SFTTrainer's own preparation, without building a model."""
    trainer: Any = SFTTrainer.__new__(SFTTrainer)
    trainer._tokenizer, trainer.chat_template = tokenizer, get_training_chat_template(tokenizer)
    trainer.completion_only_loss, trainer._is_vision_dataset = False, False
    arguments = SFTConfig(
        str(cache), max_length=MAX_LENGTH, assistant_only_loss=True, use_cpu=True, bf16=False, packing=packs,
        dataset_num_proc=processes,
    )  # fmt: skip
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))
    prepared: datasets.Dataset = trainer._prepare_dataset(rows, tokenizer, arguments, packs, None, "train")
    return prepared


PREPARE: dict[str, Callable[..., datasets.Dataset]] = {
    "ours": prepare_ours,
    "TRL, 1 process": lambda *given: prepare_trl(*given, processes=None),
    "TRL, 2 processes": lambda *given: prepare_trl(*given, processes=2),
}
TARGETS = {"unpacked": 1.8, "packed": 1.4}


def run_case(
    file: Path, few: Path, tokenizer: PreTrainedTokenizerBase, root: Path, packs: bool, repeats: int
) -> dict[str, Any]:
    """``few``: rows to warm up with."""
    results: dict[str, datasets.Dataset] = {}

    def contender(name: str, rows: Path = file) -> None:
        results[name] = PREPARE[name](rows, tokenizer, Path(tempfile.mkdtemp(dir=root)), packs)

    for name in PREPARE:  # imports and compiled templates; a whole round would take minutes
        contender(name, few)
    measured = measure({name: lambda name=name: contender(name) for name in PREPARE}, repeats, warmup=0)  # type: ignore[misc]
    cpu = {name: result.cpu_median for name, result in measured.items()}
    check = check_packs if packs else check_rows
    return {
        "gate": {name: check(results["ours"], results[name]) for name in results if name != "ours"},
        "cpu_seconds": cpu,
        "wall_seconds": {name: result.wall_median for name, result in measured.items()},
        "times": {name: cpu[name] / cpu["ours"] for name in cpu if name != "ours"},
        "target": TARGETS["packed" if packs else "unpacked"],
        "runs": {name: result.as_dict() for name, result in measured.items()},
    }


def check_rows(ours: datasets.Dataset, theirs: datasets.Dataset) -> str:
    same = sum(
        a["input_ids"] == b["input_ids"] and a["labels"] == b["labels"] for a, b in zip(ours, theirs, strict=True)
    )
    assert same == len(ours), f"{len(ours) - same} rows differ"
    return f"{same} of {len(ours)} rows identical"


def check_packs(ours: datasets.Dataset, theirs: datasets.Dataset) -> str:
    tokens = [sum(map(len, rows["input_ids"])) for rows in (ours, theirs)]
    supervised = [sum(label != -100 for row in rows["labels"] for label in row) for rows in (ours, theirs)]
    assert tokens[0] == tokens[1] and supervised[0] == supervised[1] and len(ours) <= len(theirs)
    return f"{tokens[0]} tokens in {len(ours)} packs; TRL {len(theirs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else build_demo_tokenizer()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        file, few = root / "rows.jsonl", root / "few.jsonl"
        write_rows(file, options.rows)
        write_rows(few, 100)
        cases = {name: run_case(file, few, tokenizer, root, name == "packed", options.repeats) for name in TARGETS}
    result = {"id": "C4", "repeats": options.repeats, "rows": options.rows, "cases": cases}
    write_result("data_preparation", result, options.results)
    rows = [
        (case, name, seconds, one["wall_seconds"][name], one["times"].get(name, 1.0))
        for case, one in cases.items()
        for name, seconds in one["cpu_seconds"].items()
    ]
    print(table(("case", "contender", "CPU s", "wall s", "times ours"), rows))
    print(*(f"{case}: {gate}" for case, one in cases.items() for gate in one["gate"].values()), sep="\n")


if __name__ == "__main__":
    main()
