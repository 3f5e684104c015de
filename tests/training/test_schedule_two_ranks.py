"""Over two ranks the learning rates that are logged are still those of the preview, for every schedule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, tempfile
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from sft_experiments.config.hydra import composed, conf_dir
from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.launch.trial import plan_run
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import BatchPlan, Choice, StepPlan
from sft_experiments.training.arguments import training_arguments
from sft_experiments.training.arguments import planned_learning_rates
from sft_experiments.training.trainer import ExperimentTrainer

torch.set_num_threads(1)
tokenizer = build_demo_tokenizer()
rows = Dataset.from_dict({"input_ids": [[5, 6, 7, 8]] * 24, "labels": [[-100, 6, 7, 8]] * 24})
results = {}
for name in sorted(file.stem for file in (conf_dir() / "scheduler").glob("*.yaml")):
    steps = StepPlan(24, 3, 7, 0 if name == "constant" else 2, 8)
    with composed([f"scheduler={name}", "logger=none"]) as composition:
        trial = plan_run(composition)
    config = trial.config
    config.train.logging_steps, config.train.eval_on_start, config.train.load_best_model_at_end = 1, False, False
    config.train.extra |= {"save_strategy": "no"}
    plan = replace(trial.plan, batch=BatchPlan(4, 1, 2), steps=steps, attention=Choice("sdpa", ""))
    folder = RunFolder(Path(tempfile.mkdtemp()))
    arguments = training_arguments(config, plan, folder, resumes=False)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    trainer = ExperimentTrainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    logged = [event["learning_rate"] for event in trainer.state.log_history if "learning_rate" in event]
    results[name] = {"logged": logged, "planned": planned_learning_rates(config, steps), "ranks": arguments.world_size}
if arguments.process_index == 0:
    Path(sys.argv[1]).write_text(json.dumps(results))
"""


def test_the_preview_is_what_two_ranks_log(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "script.py"), str(tmp_path / "result.json")],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "result.json").read_text())
    assert len(results) >= 9
    for name, result in results.items():
        assert result["ranks"] == 2
        assert result["logged"] == pytest.approx(result["planned"], rel=1e-9, abs=0), name
        assert len(result["logged"]) == 7
