"""Names, speed, weights, memory and FLOPs behind the events."""

import math
import subprocess
import sys

import pytest
import torch

from sft_experiments.models.shape import peak_flops, training_flops_per_token
from sft_experiments.monitor.measure import Speed, WeightSample, measure_memory, measured
from sft_experiments.monitor.rules import RunFacts
from sft_experiments.training.run import memory_capacity_gib


def test_upstream_names_become_ours() -> None:
    logs = {
        "loss": 1,
        "grad_norm": 0.5,
        "learning_rate": 1e-3,
        "mean_token_accuracy": 0.3,
        "epoch": 0.1,
        "num_tokens": 100,
        "eval_loss": 1.1,
        "eval_exact_match/sort": 0.5,
        "eval_runtime": 2.0,
        "eval_samples_per_second": 9.0,
    }
    assert measured(logs) == {
        "train/loss": 1.0,
        "train/grad_norm": 0.5,
        "train/learning_rate": 1e-3,
        "train/mean_token_accuracy": 0.3,
        "eval/loss": 1.1,
        "eval/exact_match/sort": 0.5,
        "eval/seconds": 2.0,
    }


def test_the_trainers_summary_is_not_an_event() -> None:
    assert measured({"train_runtime": 12.0, "train_loss": 3.0, "total_flos": 1e9}) == {}


def test_speed_counts_steps_and_leaves_out_pauses() -> None:
    speed = Speed(RunFacts(10))
    speed.start(now=0.0, tokens=1000)
    speed.step_ended(2.0)
    speed.pause_ended(10.0)  # an evaluation
    speed.step_ended(14.0)
    assert speed.measure(tokens=1600, supervised=300) == {
        "train/step_seconds": 3.0,
        "train/tokens_per_second": 100.0,
        "train/supervised_tokens_per_second": 50.0,
    }
    assert speed.measure(tokens=1600, supervised=0) == {}  # no step since


def test_the_speed_of_a_run_is_that_of_all_its_steps_also_those_before_a_resume() -> None:
    speed = Speed(RunFacts(10))
    assert speed.of_the_run() == {}
    speed.replay(tokens=400, tokens_per_second=100.0)  # 4 s
    speed.replay(tokens=400, tokens_per_second=math.nan)
    speed.start(now=50.0, tokens=400)
    speed.step_ended(52.0)
    speed.measure(tokens=1000, supervised=1)
    assert speed.of_the_run() == {"train/tokens_per_second": 1000 / 6}


@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_the_weight_sample_sees_whether_weights_move(lr: float) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(1000, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 1000))
    for weight in model[0].parameters():
        weight.requires_grad_(False)
    sample = WeightSample(model)
    model(torch.arange(64)).pow(2).sum().backward()
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=lr).step()
    assert sample.changed_fraction() == pytest.approx(1.0 if lr else 0.0, abs=0.1)


def test_a_model_without_trainable_weights_has_not_moved() -> None:
    assert WeightSample(torch.nn.ReLU()).changed_fraction() == 0.0


def test_memory_of_the_host_is_that_of_this_process() -> None:
    before = measure_memory()["memory/host_rss_gib"]
    block = torch.ones(2**26)  # 256 MiB
    after = measure_memory()["memory/host_rss_gib"]
    assert after - before == pytest.approx(block.numel() * 4 / 2**30, abs=0.1)
    assert after < memory_capacity_gib("cpu") < math.inf


def test_flops_per_token_follow_6n_and_4n() -> None:
    full = training_flops_per_token(1e9, trainable_fraction=1.0, num_layers=0, hidden_size=0, mean_length=0)
    adapters = training_flops_per_token(1e9, trainable_fraction=0.0, num_layers=0, hidden_size=0, mean_length=0)
    assert (full, adapters) == (6e9, 4e9)


def test_flops_per_token_agree_with_a_count_of_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    length, config = (
        64,
        LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4),
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    tokens = torch.randint(512, (1, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    matmul = sum(weight.numel() for weight in model.parameters()) - 512 * 64  # without the input embedding
    ours = training_flops_per_token(matmul, 1.0, 3, 64, length)
    unmasked = ours + 6 * 3 * 64 * length  # torch counts the masked half of the scores too
    assert counter.get_total_flops() / length == pytest.approx(unmasked, rel=0.03)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H200", 989.4), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA L40S", 362.0)],
)
def test_known_devices_have_a_peak(name: str, tflops: float) -> None:
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


def test_an_unknown_device_has_none() -> None:
    assert peak_flops("Abacus 3000") is None


def test_health_and_readers_import_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "import sft_experiments.monitor.health, sft_experiments.runs.metrics\n"
        "import sft_experiments.secrets, sft_experiments.monitor.trackers.register\n"
        "heavy = {'torch', 'transformers', 'trl', 'wandb', 'tensorboard', 'rich.progress'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
