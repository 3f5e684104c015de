"""Device, precision and threads are chosen with a reason, without torch."""

import pytest

from sft_experiments.errors import ConfigError
from sft_experiments.plan import machine as module
from sft_experiments.plan.machine import (
    Gpu,
    check_device_count,
    check_sharding,
    first_gpus,
    resolve_device,
    resolve_precision,
    resolve_threads,
)
from sft_experiments.schema import Device, Precision


@pytest.fixture
def pretend_gpus(monkeypatch: pytest.MonkeyPatch):
    """Replaces what nvidia-smi would list; there is no GPU where these tests run."""

    def install(*found: Gpu) -> None:
        monkeypatch.setattr(module, "gpus", lambda: found)

    return install


def test_auto_takes_the_gpu_where_there_is_one(pretend_gpus) -> None:
    pretend_gpus(Gpu(0, "Test GPU", 80.0, 9.0))
    assert resolve_device(Device.auto).value == "cuda"
    assert "Test GPU" in resolve_device(Device.auto).reason


def test_asking_for_cuda_without_a_gpu_is_refused(pretend_gpus) -> None:
    pretend_gpus()
    with pytest.raises(ConfigError, match=r"compute\.device=cuda"):
        resolve_device(Device.cuda)


def test_more_devices_than_there_are_are_refused(pretend_gpus) -> None:
    pretend_gpus(*(Gpu(index, "Test GPU", 80.0, 9.0) for index in (2, 3)))
    check_device_count("cuda", 2)
    check_device_count("cpu", 16)  # processes
    for device, count in (("cuda", 3), ("mps", 2)):
        with pytest.raises(ConfigError, match=rf"compute\.num_devices={count}: this machine has {count - 1} visible"):
            check_device_count(device, count)


def test_a_run_sees_no_more_gpus_than_it_uses(pretend_gpus) -> None:
    pretend_gpus(*(Gpu(index, "Test GPU", 80.0, 9.0) for index in (1, 2, 5)))
    assert [first_gpus(count) for count in (1, 2)] == ["1", "1,2"]


def test_sharding_is_refused_where_it_would_do_nothing() -> None:
    check_sharding("cuda", fsdp=True)
    check_sharding("cpu", fsdp=False)
    with pytest.raises(ConfigError, match=r"compute\.fsdp=true needs CUDA devices"):
        check_sharding("cpu", fsdp=True)


@pytest.mark.parametrize(("capability", "expected"), [(7.5, "fp32"), (8.0, "bf16"), (9.0, "bf16")])
def test_bf16_needs_ampere(pretend_gpus, capability: float, expected: str) -> None:
    pretend_gpus(Gpu(0, "Test GPU", 24.0, capability))
    assert resolve_precision(Precision.auto, "cuda").value == expected


def test_the_precision_says_what_adapters_leave_in_bf16_and_that_they_are_fp32(pretend_gpus) -> None:
    pretend_gpus(Gpu(0, "Test GPU", 24.0, 9.0))
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
