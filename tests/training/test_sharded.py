"""FSDP with our trainer, over two processes without a GPU: the result of one process, and it can be resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from sft_experiments.config.hydra import composed
from sft_experiments.config.validate import SHARDED_OPTIMIZERS
from sft_experiments.launch.trial import plan_run
from sft_experiments.model_use.evaluate import evaluate_run
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import read_plan
from sft_experiments.runs.record import Record, Status, read_record
from tests.conftest import SMALL_DEMO

pytestmark = pytest.mark.slow

SETTINGS = ["logger=none", "train.effective_batch_size=8", "compute.threads=2"]
LONGER = [*SMALL_DEMO, "train.max_steps=6"]
FEW_ROWS = [
    *("dataset.demo.num_train=60", "dataset.demo.num_validation=20", "dataset.max_length=48"),
    *("generation.num_samples=1", "generation.max_new_tokens=2", "generation.exact_match_rows=0"),
    *("train.max_steps=4", "train.eval_steps=2"),
]
ONE = [sys.executable, "-m", "sft_experiments.training.worker"]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SHARDED = [*LAUNCHER, "-m", "benchmarks.shard_on_cpu"]
Train = Callable[..., tuple[RunFolder, Record]]


@pytest.fixture
def train(tmp_path: Path, sft_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """``train(name, *overrides, command, until)``: plan a trial, train it up to that share of its steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", sft_environment["SFT_CACHE_DIR"])

    def run(name: str, *overrides: str, command: list[str], until: float | None = None) -> tuple[RunFolder, Record]:
        with composed([*SETTINGS, f"name={name}", "compute.device=cpu", *overrides]) as composition:
            trial = plan_run(composition)
        if command is SHARDED:  # the key needs CUDA; a worker does what its folder says
            trial.record.config["compute"]["fsdp"] = True
        if until is not None:
            trial = replace(trial, plan=replace(trial.plan, stop_at=until))
        trial.write()
        environment = {**sft_environment, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([*command, str(trial.folder.path)], env={**os.environ, **environment}, check=True, timeout=300)
        assert OmegaConf.load(trial.folder.config).compute.fsdp is (command is SHARDED)
        return trial.folder, read_record(trial.folder)

    return run


def test_a_sharded_run_stops_resumes_and_ends_with_the_result_of_one_process(train: Train) -> None:
    one, alone = train("one", *LONGER, command=ONE)
    _, stopped = train("parts", *LONGER, "compute.num_devices=2", command=SHARDED, until=0.5)
    assert stopped.status is Status.pruned
    parts, record = train("parts", *LONGER, "compute.num_devices=2", command=SHARDED)
    assert (record.status, record.attempts) == (Status.completed, 2)
    loss_head = read_plan(parts).loss_head
    assert loss_head is not None and loss_head.value == "trl_fused"
    for name in ("eval/loss", "train/loss", "eval/mean_token_accuracy"):
        assert record.metrics[name] == pytest.approx(alone.metrics[name], abs=1e-5), name
    assert record.metrics["tokens"] == alone.metrics["tokens"]
    steps = [json.loads(line)["step"] for line in parts.metrics.read_text().splitlines() if "eval/loss" in line]
    assert steps == sorted(set(steps))
    whole, weights = load_file(one.model / "model.safetensors"), load_file(parts.model / "model.safetensors")
    assert whole.keys() == weights.keys()
    for name, weight in whole.items():
        assert torch.allclose(weights[name], weight, atol=1e-4), name
    assert evaluate_run(parts.path)[0]["eval/loss"] == pytest.approx(record.objective, abs=1e-5)  # in this process


def test_sharded_adapters_with_recomputed_activations_train_as_in_one_process(train: Train) -> None:
    settings = ["peft=lora", "train.activation_checkpointing=true", "peft.lora_dropout=0", *FEW_ROWS]
    _, alone = train("one", *settings, command=ONE)
    folder, record = train("parts", *settings, "compute.num_devices=2", command=SHARDED)
    assert record.status is Status.completed
    assert record.objective == pytest.approx(alone.objective, abs=1e-5)
    assert (folder.model / "adapter_model.safetensors").is_file()


def test_sharded_adapters_on_a_bf16_base_lose_no_bit_of_a_loss_to_their_wrapping(train: Train) -> None:
    settings = ["peft=lora", "train.precision=bf16", "peft.lora_dropout=0", *FEW_ROWS]
    _, alone = train("one", *settings, command=ONE)
    folder, record = train("parts", *settings, "compute.num_devices=2", command=SHARDED)
    assert record.status is Status.completed
    assert record.objective == pytest.approx(alone.objective, rel=4e-4)  # accelerate's own policy: 4e-3
    adapters = load_file(folder.model / "adapter_model.safetensors")
    assert {one.dtype for one in adapters.values()} == {torch.float32}


# The others' is the first test's run.
@pytest.mark.parametrize("optim", [name for name in SHARDED_OPTIMIZERS if name != "adamw_torch"])
def test_an_optimizer_that_is_offered_resumes_to_the_result_of_one_process(optim: str, train: Train) -> None:
    _, alone = train("one", f"train.optim={optim}", *FEW_ROWS, command=ONE)
    settings = [f"train.optim={optim}", *FEW_ROWS, "compute.num_devices=2"]
    train("parts", *settings, command=SHARDED, until=0.5)
    _, record = train("parts", *settings, command=SHARDED)
    assert (record.status, record.attempts) == (Status.completed, 2)
    assert record.objective == pytest.approx(alone.objective, abs=1e-5)
