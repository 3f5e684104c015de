"""Device, precision and threads are chosen with a reason, without torch."""

import os
import re
from collections.abc import Callable

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import plan_run
from sft_experiments.plan import machine as module
from sft_experiments.plan.machine import (
    check_device_count,
    check_sharding,
    resolve_device,
    resolve_precision,
    resolve_threads,
)
from sft_experiments.runs.plan_file import Plan
from sft_experiments.schema import Device, Precision
from tests.plan.fake_nvml import Card, cards

Machine = Callable[..., None]


def planned(*overrides: str) -> Plan:
    with composed(list(overrides)) as composition:
        return plan_run(composition).plan


def trial_id(*overrides: str) -> str:
    with composed(list(overrides)) as composition:
        return plan_run(composition).id


def test_auto_takes_the_gpu_where_there_is_one(on_gpus: Machine) -> None:
    on_gpus(Card("GPU-a"))
    assert resolve_device(Device.auto).value == "cuda"
    assert "Test GPU" in resolve_device(Device.auto).reason


@pytest.mark.parametrize(
    ("torch", "reason"),
    [
        ("2.13.0+cpu", "Test GPU is not used: torch 2.13.0+cpu is built without CUDA"),
        ("2.13.0+rocm6.4", "torch 2.13.0+rocm6.4 is built for AMD's GPUs"),
        ("2.13.0+xpu", "torch 2.13.0+xpu is built for Intel's GPUs"),
    ],
)
def test_a_gpu_that_torch_is_not_built_for_is_named(on_gpus: Machine, torch: str, reason: str) -> None:
    on_gpus(*[Card("GPU-a")] * torch.endswith("cpu"), torch=torch)
    assert resolve_device(Device.auto).value == "cpu"
    assert reason in resolve_device(Device.auto).reason
    assert [line for line in planned("compute=auto").warnings if reason in line]
    assert not [line for line in planned("compute=cpu").warnings if reason in line]
    with pytest.raises(ConfigError, match=re.escape(f"compute.device=cuda: {reason}")):
        resolve_device(Device.cuda)


def test_asking_for_cuda_without_a_gpu_is_refused(on_gpus: Machine) -> None:
    on_gpus()
    with pytest.raises(ConfigError, match=r"compute\.device=cuda"):
        resolve_device(Device.cuda)


def test_more_devices_than_there_are_are_refused(on_gpus: Machine) -> None:
    on_gpus(*cards("GPU-a", "GPU-b", "GPU-c", "GPU-d"), visible="2,3")
    check_device_count("cuda", 2)
    check_device_count("cpu", 16)  # processes
    for device, count in (("cuda", 3), ("mps", 2)):
        with pytest.raises(ConfigError, match=rf"compute\.num_devices={count}: this machine has {count - 1} visible"):
            check_device_count(device, count)


def test_mig_instances_are_not_joined(on_gpus: Machine) -> None:
    on_gpus(Card("GPU-a", instances=cards("MIG-1", "MIG-2")))
    check_device_count("cuda", 1)
    with pytest.raises(ConfigError, match=r"compute\.num_devices=2: MIG instances"):
        check_device_count("cuda", 2)


def test_sharding_is_refused_where_it_would_do_nothing() -> None:
    check_sharding("cuda", fsdp=True)
    check_sharding("cpu", fsdp=False)
    with pytest.raises(ConfigError, match=r"compute\.fsdp=true needs CUDA devices"):
        check_sharding("cpu", fsdp=True)


@pytest.mark.parametrize(("capability", "expected"), [(7.5, "fp32"), (8.0, "bf16"), (9.0, "bf16")])
def test_bf16_needs_ampere(on_gpus: Machine, capability: float, expected: str) -> None:
    on_gpus(Card("GPU-a"), Card("GPU-b", capability=(int(capability), round(capability * 10) % 10)))
    assert resolve_precision(Precision.auto, "cuda").value == expected


def test_the_precision_says_what_adapters_leave_in_bf16_and_that_they_are_fp32(on_gpus: Machine) -> None:
    on_gpus(Card("GPU-a"))
    for wanted in (Precision.auto, Precision.pure_bf16):
        choice = resolve_precision(wanted, "cuda", adapters=True)
        assert choice.value == "bf16"
        assert "frozen weights in bf16, adapters in fp32" in choice.reason
    assert "fp32 parameters" in resolve_precision(Precision.auto, "cuda").reason
    assert resolve_precision(Precision.fp32, "cuda", adapters=True).value == "fp32"


@pytest.mark.parametrize(("flags", "expected"), [({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")])
def test_bf16_on_cpu_needs_the_instructions(monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str) -> None:
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))
    choice = resolve_precision(Precision.auto, "cpu")
    assert choice.value == expected
    assert "avx512_bf16" in choice.reason or "amx_bf16" in choice.reason


def test_concurrent_trials_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_count", lambda: 8)
    assert [resolve_threads(None, trials) for trials in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert resolve_threads(5, 4) == 5


# ---- what a device has for speed


def tuning(*overrides: str) -> dict[str, tuple[str, str]]:
    return {name: (choice.value, choice.reason) for name, choice in planned(*overrides).tuning.items()}


def test_a_gpu_is_used_as_it_can_be_each_with_its_reason(on_gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_count", lambda: 8)
    on_gpus(Card("GPU-a"))
    chosen = tuning()
    assert {name: value for name, (value, _) in chosen.items()} == {
        "tf32": "on", "fused_optimizer": "on", "pinned_memory": "on", "dataloader_num_workers": "2",
    }  # fmt: skip
    assert all(reason for _, reason in chosen.values())
    assert planned().optimizer("adamw_torch") == "adamw_torch_fused"
    assert planned().optimizer("sgd") == "sgd"


@pytest.mark.parametrize("name", ["tf32", "fused_optimizer", "pinned_memory"])
def test_each_can_be_switched_off(on_gpus: Machine, name: str) -> None:
    on_gpus(Card("GPU-a"))
    assert tuning(f"compute.{name}=false")[name] == ("off", "as configured")


def test_fp32_that_is_asked_for_is_exact_unless_tf32_is_asked_for_too(on_gpus: Machine) -> None:
    on_gpus(Card("GPU-a"))
    assert tuning("train.precision=fp32")["tf32"] == ("off", "train.precision=fp32 is exact")
    assert tuning("train.precision=fp32", "compute.tf32=true")["tf32"][0] == "on"


def test_tf32_decides_what_a_trial_is(on_gpus: Machine) -> None:
    on_gpus(Card("GPU-a"))
    exact, fast = (trial_id("train.precision=fp32", f"compute.tf32={tf32}") for tf32 in ("false", "true"))
    assert exact != fast
    assert exact == trial_id("train.precision=fp32", "compute=cpu")
    assert exact == trial_id("train.precision=fp32", "compute.tf32=false", "compute.fused_optimizer=false")


def test_the_cpu_is_left_as_it_was_and_cannot_do_what_cuda_can(on_gpus: Machine) -> None:
    on_gpus()
    assert tuning() == {}
    assert tuning("compute.fused_optimizer=true", "compute.dataloader_num_workers=1") == {
        "fused_optimizer": ("on", "as configured"),
        "dataloader_num_workers": ("1", "as configured"),
    }
    for name in ("tf32", "pinned_memory"):
        with pytest.raises(ConfigError, match=rf"compute\.{name}=true: that is CUDA's, and this runs on cpu"):
            planned(f"compute.{name}=true")


def test_old_cards_have_no_tf32(on_gpus: Machine) -> None:
    on_gpus(Card("GPU-a", capability=(7, 5)))
    assert tuning()["tf32"] == ("off", "compute capability 7.5 has none")
    with pytest.raises(ConfigError, match=r"compute\.tf32=true: a GPU of compute capability 7\.5"):
        planned("compute.tf32=true")


def test_loader_processes_need_cores_of_their_own(on_gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_count", lambda: 8)
    on_gpus(*cards("GPU-a", "GPU-b", "GPU-c", "GPU-d"))
    assert tuning()["dataloader_num_workers"][0] == "0"


def test_cores_are_shared_by_the_gpus_that_are_named(on_gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_count", lambda: 8)
    on_gpus(*cards("GPU-a", "GPU-b", "GPU-c", "GPU-d"))
    assert tuning("compute.devices=[3]")["dataloader_num_workers"][0] == "2"


def test_a_fused_optimizer_is_refused_where_it_would_not_be_read(on_gpus: Machine) -> None:
    on_gpus(Card("GPU-a"))
    with pytest.raises(ConfigError, match=r"compute\.fused_optimizer.*train\.optim"):
        planned("compute.fused_optimizer=true", "train.optim=sgd")


def test_gpus_that_are_named_and_not_used_are_told(on_gpus: Machine) -> None:
    on_gpus(*cards("GPU-a", "GPU-b"))
    (line,) = planned("compute.devices=[0,1]").warnings
    assert "compute.num_devices=2 trains one model on all" in line
    assert planned("compute.devices=[1]").warnings == []


def test_a_worker_stays_on_the_cores_beside_its_gpu(on_gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, moved = os.sched_getaffinity(0), []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: moved.append(cores))
    on_gpus(Card("GPU-a"), Card("GPU-b", cores=(min(mine), 3000)), Card("GPU-c", cores=(3000,)))
    for rank in range(3):
        module.stay_near_gpu(rank)
    assert moved == [{min(mine)}]  # not told, near, and none of the near ones may be used
