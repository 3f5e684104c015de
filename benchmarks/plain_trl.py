"""The peer that one would write by hand: a plain TRL script, here also for Hydra's launchers.

python -m benchmarks.plain_trl '{"model": ..., "data": ..., "steps": 20, "batch": 4, ...}'
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks.world import Job, peer_arguments


def train(model: str, data: str, output: str, changes: dict[str, Any] | None = None, **job: float) -> float:
    """Train, evaluate, save. Returns the evaluation loss; ``seconds.json`` gets what the training took."""
    rows = load_dataset(data)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        args=SFTConfig(**{**peer_arguments(Job(**job), Path(output)), **(changes or {})}),  # type: ignore[arg-type]
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train()
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    (Path(output) / "seconds.json").write_text(json.dumps(seconds))
    trainer.save_model(output)
    losses = [event["eval_loss"] for event in trainer.state.log_history if "eval_loss" in event]
    return float(losses[-1])


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
