"""What this machine is: devices, number formats, threads and memory, each choice with its reason. Imports no torch."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import ConfigError
from sft_experiments.runs.plan_file import Choice
from sft_experiments.schema import Device, PeftMethod, Precision
from sft_experiments.values import GIB

BF16_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
BF16_COMPUTE_CAPABILITY = 8.0  # Ampere


@dataclass(frozen=True)
class Gpu:
    """One CUDA device as nvidia-smi reports it."""

    index: int
    name: str
    memory_gib: float
    compute_capability: float


@lru_cache
def gpus() -> tuple[Gpu, ...]:
    """The CUDA devices of this machine that CUDA_VISIBLE_DEVICES leaves visible; empty without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "--query-gpu=index,name,memory.total,compute_cap"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    rows = [line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") == 3]
    found = [Gpu(int(index), name, float(memory) / 1024, float(cap)) for index, name, memory, cap in rows]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(found)
    return tuple(gpu for gpu in found if str(gpu.index) in visible.split(","))


def first_gpus(count: int) -> str:
    """CUDA_VISIBLE_DEVICES of a run with so many devices: with more, torch would spread one process over all."""
    return ",".join(str(gpu.index) for gpu in gpus()[:count])


def check_device_count(device: str, count: int) -> None:
    """Raise ``ConfigError`` for more devices than there are. On the CPU they are processes."""
    there = {"cuda": len(gpus()), "mps": 1}.get(device, count)
    if count > there:
        raise ConfigError(f"compute.num_devices={count}: this machine has {there} visible {device} device(s)")


def check_sharding(device: str, fsdp: bool) -> None:
    """Raise ``ConfigError`` where compute.fsdp would quietly do nothing. It can be planned for without a GPU."""
    if fsdp and device != "cuda":
        raise ConfigError(f"compute.fsdp=true needs CUDA devices: on {device} accelerate trains whole copies")


@lru_cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU; empty where /proc/cpuinfo does not exist."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def cpu_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(wanted: Device) -> Choice:
    """cpu, cuda or mps. Raises ``ConfigError`` when the wanted one is not there."""
    if wanted is Device.cpu:
        return Choice("cpu", "as configured")
    if gpus():
        return Choice("cuda", f"{gpus()[0].name}, {gpus()[0].memory_gib:.0f} GiB")
    if wanted is Device.cuda:
        raise ConfigError("compute.device=cuda: no CUDA device is visible (nvidia-smi lists none)")
    if _has_mps():
        return Choice("mps", "Apple GPU")
    if wanted is Device.mps:
        raise ConfigError("compute.device=mps: this machine has no Apple GPU")
    return Choice("cpu", "no GPU is visible")


def _has_mps() -> bool:
    return os.uname().sysname == "Darwin" and os.uname().machine == "arm64"


PARAMETERS = {True: "frozen weights in bf16, adapters in fp32", False: "fp32 parameters"}  # with adapters or without


def resolve_precision(wanted: Precision, device: str, adapters: bool = False) -> Choice:
    """fp32, bf16 or pure_bf16. ``auto`` keeps what is trained in fp32 and uses bf16 arithmetic where it is fast.

    Adapters are trained in fp32 whatever their base is kept in, so with them pure_bf16 is bf16.
    """
    if wanted is Precision.pure_bf16 and adapters:
        return Choice("bf16", f"as configured: {PARAMETERS[True]}, bf16 autocast")
    if wanted is not Precision.auto:
        return Choice(wanted.value, "as configured")
    autocast = f"{PARAMETERS[adapters]}, bf16 autocast"
    if device == "cuda":
        capability = min(gpu.compute_capability for gpu in gpus())
        if capability >= BF16_COMPUTE_CAPABILITY:
            return Choice("bf16", f"{autocast}: compute capability {capability}")
        return Choice("fp32", f"compute capability {capability} emulates bf16")
    if device == "cpu":
        flag = next((flag for flag in BF16_CPU_FLAGS if flag in cpu_flags()), None)
        if flag is not None:
            return Choice("bf16", f"{autocast}: the CPU has {flag}")
        return Choice("fp32", "the CPU has neither amx_bf16 nor avx512_bf16")
    return Choice("fp32", f"bf16 is not used on {device}")


def loads_bf16(precision: str, method: PeftMethod) -> bool:
    """Whether weights are loaded in bf16: all of them for ``pure_bf16``; for ``bf16`` those that adapters leave frozen.

    A frozen weight loses nothing that training would need; a trained one does not move in bf16 (docs/from-a-script.md).
    """
    return precision == "pure_bf16" or (precision == "bf16" and method is not PeftMethod.none)


def resolve_threads(configured: Optional[int], concurrent_trials: int) -> int:
    """CPU threads of one trial: the cores shared out, because trials with too many spin against each other."""
    return configured if configured is not None else max(1, cpu_count() // concurrent_trials)


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return find_spec(package) is not None


PACKAGES = (
    "sft-experiments", "torch", "transformers", "trl", "datasets", "accelerate", "peft", "bitsandbytes", "flash-attn",
    "hydra-core", "omegaconf", "wandb", "tensorboard",
)  # fmt: skip


def describe_environment(device_name: str, threads: int) -> dict[str, Any]:
    """Versions, git commit, device and thread count, as plain values."""
    return {
        "versions": {name: found for name in PACKAGES if (found := installed_version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name,
        "cpu": cpu_name(),
        "threads": threads,
        "git": git_state(Path.cwd()),
    }


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether files differ from it; empty outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain"))} if commit else {}


def _git(folder: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_capacity_gib() -> float:
    """Memory of the host, or the container's share of it. Imports nothing heavy."""
    installed = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(installed, _container_limit()) / GIB


def _container_limit() -> float:
    for path in _CGROUP_LIMITS:
        try:
            return float(Path(path).read_text())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return float("inf")
