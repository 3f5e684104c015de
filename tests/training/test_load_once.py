"""Of several ranks that share a model out only the first reads its weights; the others wait, however long it takes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from sft_experiments.config.hydra import composed
from sft_experiments.launch.trial import Trial, plan_run
from sft_experiments.runs.plan_file import Choice
from sft_experiments.training import run as module
from sft_experiments.training.model import hollow_model, load_model, load_tokenizer, outline, saved_buffers

MIB = 2**20


def planned(*overrides: str) -> Trial:
    with composed(["model=tiny", "compute.device=cpu", "compute.num_devices=2", *overrides]) as composition:
        trial = plan_run(composition)
    trial.config.compute.fsdp = True
    return trial


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``load(rank, trial, outline)``: what that rank of two loads, with the outline that the first one sends."""

    def run(rank: int, trial: Trial, sent: Any = None) -> tuple[Any, Any]:
        seen = []

        def of_first_rank(value: Any) -> Any:
            seen.append(value)
            return value if rank == 0 else sent

        monkeypatch.setattr(module, "this_rank", lambda: rank)
        monkeypatch.setattr(module, "num_ranks", lambda: 2)
        monkeypatch.setattr(module, "of_first_rank", of_first_rank)
        monkeypatch.setattr(module, "choose_attention", lambda *_: Choice("sdpa", "a test"))
        data: Any = SimpleNamespace(train=SimpleNamespace(column_names=["input_ids"]))
        model, _ = module.load(trial.config, trial.plan, load_tokenizer(trial.config.model), data)
        return model, seen[0]

    return run


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A folder with a model in bf16 that generates in a way of its own."""
    config = planned().config
    tokenizer = load_tokenizer(config.model)
    model = load_model(config, tokenizer, "pure_bf16", "sdpa")
    model.generation_config = GenerationConfig(repetition_penalty=1.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rank_above_the_first_gets_the_model_without_reading_a_weight(
    precision: str, pretrained: Path, load: Any
) -> None:
    trial = planned("model=hub", f"model.name={pretrained}", "peft=lora", f"train.precision={precision}")
    first, sent = load(0, trial)
    for file in pretrained.glob("*.safetensors"):
        file.unlink()
    other, _ = load(1, trial, sent)
    assert {name: (one.shape, one.dtype) for name, one in other.state_dict().items()} == {
        name: (one.shape, one.dtype) for name, one in first.state_dict().items()
    }
    tied = other.get_output_embeddings().weight is other.get_input_embeddings().weight
    assert tied is (first.get_output_embeddings().weight is first.get_input_embeddings().weight) is True
    for (name, one), (_, same) in zip(first.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(one, same), name  # nobody sends them
    assert other.generation_config.repetition_penalty == 1.5  # all ranks generate together, token by token
    assert (other.training, other.config.use_cache) == (first.training, first.config.use_cache)


def test_a_model_without_its_values_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = planned()
    trial.config.model.config |= {"vocab_size": 50_000, "hidden_size": 512, "intermediate_size": 4096}
    tokenizer = load_tokenizer(trial.config.model)
    before = psutil.Process().memory_info().rss
    model = hollow_model(trial.config, tokenizer, "sdpa")
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    assert weights > 150 * MIB
    assert psutil.Process().memory_info().rss - before < weights / 4
    addresses = {one.data_ptr() for one in model.parameters()}
    assert len(addresses) == len(list(model.parameters()))  # accelerate tells them apart by these


def test_a_model_that_saves_buffers_is_loaded_by_every_rank(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model(
        "glm4_moe", vocab_size=64, hidden_size=16, intermediate_size=16, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, n_routed_experts=2, num_experts_per_tok=1, head_dim=8,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert saved_buffers(model)
    monkeypatch.setattr(module, "hollow_model", lambda *_: model)
    monkeypatch.setattr(module, "load_model", lambda *_: "loaded")
    assert load(1, planned(), outline(model))[0] == "loaded"


PATIENCE = """
import sys, time
from datetime import timedelta
from pathlib import Path
from sft_experiments.training import process_group as group

folder = Path(sys.argv[1])


def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.05)


group.COLLECTIVE_WAIT = timedelta(seconds=1)
group.meet("cpu")
first = group.this_rank() == 0
if first:
    time.sleep(3)  # prepares the data, for longer than a collective may take
with group.first_rank_first():
    (folder / f"past-{group.this_rank()}").touch()
if first:
    time.sleep(3)
assert group.of_first_rank("the outline" if first else None) == "the outline"
if first:
    wait_for("missed")  # hangs while the other one waits for it
else:
    try:
        group.largest(1)
    except RuntimeError:
        (folder / "missed").touch()
"""


@pytest.mark.slow
def test_the_first_rank_is_waited_for_while_it_prepares_and_missed_soon_when_it_hangs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PATIENCE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (tmp_path / "past-1").exists(), done.stderr
    assert (tmp_path / "missed").exists(), done.stderr
