"""A peer of C3, run by a Python that has LitGPT: one epoch of its fine-tuning loop over rows of token ids.

``python -m benchmarks.litgpt_step FOLDER``: reads job.json, rows.json and model.safetensors there (written by
benchmarks/training_step.py) and prints a JSON object: the loss of the first batch and the CPU and wall seconds from the
first step to the last. LitGPT's loop has no packing and does not clip gradients. Imports nothing of ours.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data.base import get_sft_collate_fn
from litgpt.finetune import full
from litgpt.model import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy
from safetensors.torch import load_file
from torch.utils.data import DataLoader

GATE_ROWS = 4  # their loss before training must be that of our model


class TimedLoader(DataLoader):  # type: ignore[type-arg]
    """Notes when the training loop asks for its first batch."""

    started = (0.0, 0.0)

    def __iter__(self) -> Any:
        if self.started == (0.0, 0.0):
            self.started = (time.process_time(), time.perf_counter())
        return super().__iter__()


def build_model(job: dict[str, Any], weights: Path) -> GPT:
    """The Llama of the other contenders, with their weights and tied embeddings."""
    config = Config(
        name="bench",
        block_size=job["max_position_embeddings"],
        vocab_size=job["vocab_size"],
        padded_vocab_size=job["vocab_size"],
        n_layer=job["num_hidden_layers"],
        n_embd=job["hidden_size"],
        n_head=job["num_attention_heads"],
        n_query_groups=job["num_key_value_heads"],
        intermediate_size=job["intermediate_size"],
        norm_eps=job["rms_norm_eps"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    converted: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, converted, load_file(weights))
    model.load_state_dict(converted)
    model.lm_head.weight = model.transformer.wte.weight
    return model


def read_rows(file: Path) -> list[dict[str, Any]]:
    """As LitGPT's own dataset gives them."""
    return [
        {
            "input_ids": torch.tensor(row["input_ids"]),
            "labels": torch.tensor(row["labels"]),
            "token_counts": {"raw": len(row["input_ids"]), "raw_plus_prompt_template": len(row["input_ids"])},
        }
        for row in json.loads(file.read_text())
    ]


def main(folder: Path) -> dict[str, Any]:
    job = json.loads((folder / "job.json").read_text())
    rows = read_rows(folder / "rows.json")
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if job["bf16"] else "32-true")
    fabric.print = lambda *_: None  # type: ignore[method-assign]
    fabric.seed_everything(0, verbose=False)
    model = fabric.setup(build_model(job, folder / "model.safetensors"))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0))
    collate = get_sft_collate_fn(pad_id=0)
    train = TimedLoader(rows, batch_size=job["micro_batch"], shuffle=True, collate_fn=collate)
    validation = DataLoader(rows[:1], collate_fn=collate)
    first = collate(rows[:GATE_ROWS])
    with torch.no_grad():
        loss = chunked_cross_entropy(model(first["input_ids"])[..., :-1, :], first["labels"][..., 1:]).item()
    full.fit(
        fabric=fabric,
        state={
            "model": model,
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer.optimizer, 1.0),
            "iter_num": 0,
            "step_count": 0,
        },
        train_dataloader=train,
        val_dataloader=validation,
        devices=1,
        resume=False,
        checkpoint_dir=folder,
        out_dir=folder / "out",
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=job["batch"],
            micro_batch_size=job["micro_batch"],
            epochs=1,
            lr_warmup_steps=None,
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1),
        data=None,
    )
    started = train.started
    seconds = {"cpu": time.process_time() - started[0], "wall": time.perf_counter() - started[1]}
    return {**seconds, "first_loss": loss, "version": version("litgpt")}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(json.dumps(main(Path(sys.argv[1]))))
