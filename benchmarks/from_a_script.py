"""What a hand-written TRL script silently gets wrong, measured on the demo data: the figures of docs/from-a-script.md.

    python -m benchmarks.from_a_script [NAME ...]

Plain SFTTrainer with the arguments that tutorials use, next to what is right. One thread, a minute or two on a CPU.
"""

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from sft_experiments.data.sources import DEMO_DEFAULTS, build_demo_tokenizer, generate_demo_rows

OLD_ARGUMENTS = (
    "max_seq_length", "evaluation_strategy", "logging_dir", "overwrite_output_dir", "warmup_ratio", "tokenizer",
)  # fmt: skip


def tokenizer() -> Any:
    return build_demo_tokenizer()


def messages(count: int, split: str = "train") -> Dataset:
    rows = generate_demo_rows(split, **DEMO_DEFAULTS)[:count]
    return Dataset.from_list([{"messages": row["messages"]} for row in rows])


def model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer()),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def trainer(rows: Dataset, network: Any = None, evaluation: Dataset | None = None, **changes: Any) -> SFTTrainer:
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 8,
        "max_steps": 10,
        "max_length": 64,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    arguments = SFTConfig(**{**settings, **changes})
    return SFTTrainer(
        model=network or model(),
        args=arguments,
        train_dataset=rows,
        eval_dataset=evaluation,
        processing_class=tokenizer(),
    )


# ---- the measurements


def masking() -> dict[str, Any]:
    """Tokens that the loss sees by default on `messages` data, and with the answers' mask."""
    counts = {}
    for name, only in (("default", False), ("assistant_only_loss=True", True)):
        built = trainer(messages(16), per_device_train_batch_size=16, assistant_only_loss=only)
        labels = next(iter(built.get_train_dataloader()))["labels"]
        counts[name] = int((labels != -100).sum())
    return counts


def bf16_weights() -> dict[str, Any]:
    """Share of weights that 60 steps of AdamW at 2e-5 leave unchanged, by the type that the weights are kept in."""
    shares = {}
    for name, dtype in (("weights in bf16", torch.bfloat16), ("weights in fp32", torch.float32)):
        network = model(dtype)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        trainer(messages(480), network, max_steps=60, learning_rate=2e-5).train()
        same = sum(int((value == before[key]).sum()) for key, value in network.state_dict().items())
        shares[name] = round(same / sum(value.numel() for value in before.values()), 3)
    return shares


def evaluation_loss() -> dict[str, Any]:
    """The Trainer's eval_loss of the same weights, by evaluation batch size; and the mean over tokens."""
    network, rows = model(), messages(60, "validation")
    losses = {}
    for size in (1, 4, 16):
        built = trainer(messages(8), network, rows, per_device_eval_batch_size=size, assistant_only_loss=True)
        losses[f"per_device_eval_batch_size={size}"] = round(built.evaluate()["eval_loss"], 4)
    return losses | {"mean over tokens": round(token_mean(network, rows), 4)}


def token_mean(network: Any, rows: Dataset) -> float:
    built = trainer(rows, network, per_device_train_batch_size=1, assistant_only_loss=True)
    nats, count = 0.0, 0
    for batch in built.get_train_dataloader():
        with torch.no_grad():
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        nats += float(
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
        )
        count += int((labels != -100).sum())
    return nats / count


def not_a_number() -> dict[str, Any]:
    """A run whose weights are NaN from step 4 on: what it logs, and how it ends."""
    network = model()
    built = trainer(messages(80), network, max_steps=8)
    steps = [0]

    def poison(*_: Any) -> None:
        steps[0] += 1
        if steps[0] == 4:
            with torch.no_grad():
                network.model.layers[0].mlp.up_proj.weight.fill_(math.nan)

    network.register_forward_pre_hook(poison)
    result = built.train()
    logged = [round(log["loss"], 3) for log in built.state.log_history if "loss" in log]
    return {"logged losses": logged, "final train_loss": round(result.training_loss, 3)}


def truncation() -> dict[str, Any]:
    """Rows that keep the end of their answer when max_length is short; nothing is said about the others."""
    built = trainer(messages(400), max_length=16, packing=False)
    end = tokenizer().convert_tokens_to_ids("<|end|>")
    kept = sum(end in row["input_ids"][-1:] for row in built.train_dataset)
    return {"rows": 400, "rows with their end token at max_length=16": kept}


def wrapped_packing() -> dict[str, Any]:
    """How far the logits of a document move when another one stands before it in a pack without boundaries."""
    network = model().eval()
    rows = [tokenizer().apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in messages(2)]
    with torch.no_grad():
        alone = network(torch.tensor([rows[1]])).logits[0]
        behind = network(torch.tensor([rows[0] + rows[1]])).logits[0, len(rows[0]) :]
        restarted = torch.cat([torch.arange(len(row)) for row in rows])[None]
        apart = network(torch.tensor([rows[0] + rows[1]]), position_ids=restarted, use_cache=False).logits[
            0, len(rows[0]) :
        ]
    return {
        "scale of the logits": round(float(alone.std()), 3),
        "moved when wrapped": round(float((behind - alone).abs().max()), 3),
        "moved with restarted position_ids": round(float((apart - alone).abs().max()), 6),
    }


def train_eval_gap() -> dict[str, Any]:
    """Log events in which `loss` and `eval_loss` stand together, as a callback of many scripts expects."""
    built = trainer(
        messages(80), evaluation=messages(16, "validation"), max_steps=10, eval_strategy="steps", eval_steps=2
    )
    built.train()
    events = built.state.log_history
    return {"log events": len(events), "with both": sum("loss" in event and "eval_loss" in event for event in events)}


def old_arguments() -> dict[str, Any]:
    """What today's SFTConfig says to yesterday's names."""
    answers = {}
    for name in OLD_ARGUMENTS:
        try:
            SFTConfig(output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, **{name: 0})
            answers[name] = "accepted"
        except TypeError:
            answers[name] = "TypeError"
    return answers


MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        masking, bf16_weights, evaluation_loss, not_a_number,
        truncation, wrapped_packing, train_eval_gap, old_arguments,
    )
}  # fmt: skip


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):  # where the Trainer's own lines belong
        results = {name: measure() for name, measure in MEASUREMENTS.items() if not names or name in names}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
