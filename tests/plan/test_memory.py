"""The memory estimate: against measured peaks of real training steps, and for its direction."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from sft_experiments.models.shape import Shape, from_config, typical_shape
from sft_experiments.plan.derive import verdict
from sft_experiments.plan.memory import Workload, estimate_memory
from sft_experiments.values import GIB, parse_size

LLAMA_8B = Shape(
    hidden=4096, layers=32, heads=32, key_value_heads=8, head_size=128, width=14336, vocabulary=128_256, tied=False
)
WORK = Workload(precision="bf16", per_device_batch=4, length=2048)
WITHIN = 0.15


@pytest.mark.slow
def test_estimates_are_within_15_percent_of_measured_peaks() -> None:
    """Five of the cases of benchmarks/memory_estimate.py, the smallest of each kind; docs/memory.md has all."""
    from benchmarks.memory_estimate import cases, measure  # torch, trl: only here

    names = {"base, fp32", "bf16 autocast", "checkpointing, bf16", "vocabulary 32k, all supervised", "LoRA, bf16"}
    for case in cases("cpu"):
        if case.name in names:
            small = replace(case, workload=replace(case.workload, per_device_batch=2))
            estimated, measured = estimate_memory(small.shape, small.workload).total, measure(small)
            assert estimated == pytest.approx(measured, rel=WITHIN), case.name


@pytest.mark.slow
def test_estimates_over_two_devices_are_within_15_percent_of_measured_peaks() -> None:
    """Some of the cases that ``--ranks`` measures on two processes; docs/memory.md has all."""
    for name in ("DDP, LoRA", "FSDP, bf16"):
        command = [sys.executable, "-m", "benchmarks.memory_estimate", "--ranks", "--json", "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400)
        results = json.loads(done.stdout[done.stdout.index("[\n") :])
        assert results
        for row in results:
            assert row["estimated_mib"] == pytest.approx(row["measured_mib"], rel=WITHIN), row


FUSED = replace(WORK, precision="fp32", per_device_batch=1, length=1, optim="adamw_torch_fused")
ADAM_BYTES = 16  # fp32 weight, gradient and two moments


def test_whole_copies_cost_a_bucket_for_every_gradient_on_each_device() -> None:
    alone = estimate_memory(LLAMA_8B, FUSED)
    one_of_eight = estimate_memory(LLAMA_8B, replace(FUSED, devices=8))
    assert one_of_eight.optimizer_peak - alone.optimizer_peak == pytest.approx(4 * LLAMA_8B.parameters)
    assert one_of_eight.weights == alone.weights
    adapters = replace(FUSED, method="lora", lora_r=16, devices=8)
    assert estimate_memory(LLAMA_8B, adapters).buckets == 4 * LLAMA_8B.lora_parameters(16)


@pytest.mark.parametrize("devices", [2, 8])
def test_sharding_divides_all_states_by_the_devices(devices: int) -> None:
    estimate = estimate_memory(LLAMA_8B, replace(FUSED, devices=devices, sharded=True))
    assert estimate.optimizer_peak == pytest.approx(ADAM_BYTES * LLAMA_8B.parameters / devices)
    assert estimate.buckets == 0


def test_sharding_gathers_the_embeddings_and_a_few_layers_with_their_buffers() -> None:
    layer = LLAMA_8B.linear_parameters / LLAMA_8B.layers + 2 * LLAMA_8B.hidden
    rest = 2 * LLAMA_8B.vocabulary * LLAMA_8B.hidden + LLAMA_8B.hidden
    whole = replace(FUSED, devices=2, sharded=True)
    assert estimate_memory(LLAMA_8B, whole).gathered == pytest.approx(4 * (rest + 6 * layer))
    in_bf16 = estimate_memory(LLAMA_8B, replace(whole, precision="bf16")).gathered
    assert in_bf16 == pytest.approx(2 * (rest + 4.5 * layer) + 4 * 1.5 * layer)  # gradients are summed in fp32
    adapters = replace(whole, method="lora", lora_r=16)
    assert estimate_memory(LLAMA_8B, adapters).gathered == pytest.approx(4 * (rest + 3.5 * layer))


def test_a_70b_model_that_no_gpu_holds_fits_sixteen_in_parts() -> None:
    llama_70b = typical_shape(70.6e9)
    work = replace(WORK, per_device_batch=1, checkpointing=True, optim="adamw_torch_fused")
    assert estimate_memory(llama_70b, work).total > 1000 * GIB
    assert estimate_memory(llama_70b, replace(work, devices=16, sharded=True)).total < 100 * GIB


def total(work: Workload) -> float:
    return estimate_memory(LLAMA_8B, work).total / GIB


def test_the_parameters_are_those_of_the_published_model() -> None:
    assert LLAMA_8B.parameters == pytest.approx(8.03e9, rel=0.001)
    assert typical_shape(8.03e9).parameters == pytest.approx(8.03e9, rel=0.05)


def test_full_fine_tuning_costs_sixteen_bytes_a_weight_before_any_activation() -> None:
    nothing = estimate_memory(
        LLAMA_8B, replace(WORK, precision="fp32", per_device_batch=1, length=1, optim="adamw_torch_fused")
    )
    assert nothing.optimizer_peak == pytest.approx(16 * LLAMA_8B.parameters)


def test_frozen_weights_cost_two_bytes_under_bf16_and_no_copy() -> None:
    work = replace(WORK, method="lora", lora_r=16, checkpointing=True, per_device_batch=1, length=4096)
    adapters = LLAMA_8B.lora_parameters(16)
    estimate = estimate_memory(LLAMA_8B, work)
    assert estimate.weights == 2 * LLAMA_8B.parameters + 4 * adapters
    assert estimate.gradients == 4 * adapters and estimate.optimizer_state == 8 * adapters
    assert estimate.weight_casts <= 2 * adapters
    assert estimate.total < 22 * GIB  # in fp32 the weights alone are 30
    fp32 = estimate_memory(LLAMA_8B, replace(work, precision="fp32"))
    assert fp32.weights == 4 * (LLAMA_8B.parameters + adapters)
    rest = LLAMA_8B.parameters - LLAMA_8B.linear_parameters
    quantised = estimate_memory(LLAMA_8B, replace(work, method="qlora"))
    assert quantised.weights == pytest.approx((0.5 + 1 / 64) * LLAMA_8B.linear_parameters + 2 * rest + 4 * adapters)


def test_every_saving_saves() -> None:
    assert total(replace(WORK, checkpointing=True)) < total(WORK)
    assert total(replace(WORK, per_device_batch=1)) < total(WORK)
    assert total(replace(WORK, method="lora", lora_r=16)) < total(WORK)
    assert total(replace(WORK, method="qlora", lora_r=16)) < total(replace(WORK, method="lora", lora_r=16))
    short = replace(WORK, per_device_batch=1, length=128)  # so that the optimizer step is the peak
    assert total(replace(short, optim="adamw_torch_fused")) < total(short)


def test_a_size_is_read_with_its_unit() -> None:
    assert parse_size("80GiB") == parse_size("80") == 80 * GIB
    assert parse_size("24GB") == 24e9


@pytest.mark.parametrize("text", ["eighty", "80TiB?", "-1", "0", "nan", ""])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="device-memory"):
        parse_size(text)


def test_the_verdict_follows_the_device() -> None:
    estimate = estimate_memory(LLAMA_8B, WORK)
    assert verdict(estimate, estimate.total * 0.99) == "will not fit"
    assert verdict(estimate, estimate.total * 1.05) == "tight"
    assert verdict(estimate, estimate.total * 2) == "fits"
    assert verdict(estimate, None) is None


def test_a_config_without_sizes_gives_no_shape() -> None:
    assert from_config({"model_type": "mystery"}) is None
