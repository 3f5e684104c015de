"""Rows per minute of our preparation against TRL's own, on the same rows, with the same tokenizer, on one core.

    python benchmarks/data_preparation.py [TOKENIZER_FOLDER] [--rows 4000]

The rows are generated: questions and step-by-step answers as long as those of GSM8K (45 and 100 words on average).
Without a folder the demo tokenizer is used. Both sides start from a JSON Lines file and end with input ids and labels;
ours includes the gate and the mask proof. The rows are compared one by one.

Measured with the Qwen2.5 tokenizer (260 tokens a row) on one core of a busy two-core machine, Python 3.11,
transformers 5.23, trl 1.16, datasets 5.2: ours 98,000 to 110,000 rows per minute, TRL 63,000 to 85,000; 4000 of 4000
rows identical.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core, for both

import datasets
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from sft_experiments.data.demo import build_demo_tokenizer
from sft_experiments.data.prepare import prepare_data
from sft_experiments.schema import DataFormat, DatasetConfig, DataSource, Overlong, PackingStrategy, TrainOn

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


def prepare_ours(file: Path, tokenizer: PreTrainedTokenizerBase, cache: Path) -> datasets.Dataset:
    settings = DatasetConfig(
        name="benchmark", source=DataSource.files, format=DataFormat.messages, train_files=[str(file)],
        validation_fraction=0.0, max_length=MAX_LENGTH, packing=PackingStrategy.none, overlong=Overlong.drop,
        train_on=TrainOn.assistant, max_drop_fraction=0.1, train_split="train", verifiable_answers=False,
    )  # fmt: skip
    return prepare_data(settings, tokenizer, cache_dir=cache, show_progress=False).train


def prepare_trl(file: Path, tokenizer: PreTrainedTokenizerBase, cache: Path) -> datasets.Dataset:
    """SFTTrainer's own preparation, without building a model."""
    trainer: Any = SFTTrainer.__new__(SFTTrainer)
    from trl.chat_template_utils import get_training_chat_template

    trainer._tokenizer, trainer.chat_template = tokenizer, get_training_chat_template(tokenizer)
    trainer.completion_only_loss, trainer._is_vision_dataset = False, False
    arguments = SFTConfig(str(cache), max_length=MAX_LENGTH, assistant_only_loss=True, use_cpu=True, bf16=False)
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))
    prepared: datasets.Dataset = trainer._prepare_dataset(rows, tokenizer, arguments, False, None, "train")
    return prepared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("--rows", type=int, default=4000)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer) if arguments.tokenizer else build_demo_tokenizer()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, arguments.rows)
        results = {}
        for name, prepare in {"ours": prepare_ours, "TRL": prepare_trl}.items():
            started = time.process_time()
            results[name] = prepare(file, tokenizer, Path(folder) / name)
            seconds = time.process_time() - started
            print(f"{name:5} {seconds:6.2f} CPU seconds  {60 * arguments.rows / seconds:9,.0f} rows per minute")
        pairs = zip(results["ours"], results["TRL"], strict=True)
        same = sum(a["input_ids"] == b["input_ids"] and a["labels"] == b["labels"] for a, b in pairs)
        tokens = sum(map(len, results["ours"]["input_ids"]))
        print(f"{same} of {arguments.rows} rows identical; {tokens / arguments.rows:.0f} tokens a row")


if __name__ == "__main__":
    main()
