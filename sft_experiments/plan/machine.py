"""What this machine is: devices, number formats, threads and memory, each choice with its reason. Imports no torch."""

import os
import platform
import subprocess
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import ConfigError
from sft_experiments.plan.gpus import Gpu, cores_beside, gpus
from sft_experiments.runs.plan_file import OFF, ON, Choice
from sft_experiments.schema import ComputeConfig, Device, PeftMethod, Precision
from sft_experiments.values import GIB

BF16_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
BF16_COMPUTE_CAPABILITY = 8.0  # Ampere


def check_device_count(device: str, count: int, chosen: Optional[Sequence[str]] = None) -> None:
    """Raise ``ConfigError`` for more devices than there are. On the CPU they are processes."""
    if device == "cpu":
        return
    found = gpus(chosen) if device == "cuda" else ("mps",)
    if count > len(found):
        raise ConfigError(f"compute.num_devices={count}: this machine has {len(found)} visible {device} device(s)")
    if count > 1 and any(isinstance(one, Gpu) and one.is_part for one in found):
        raise ConfigError(f"compute.num_devices={count}: MIG instances cannot train one model together")


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


def stay_near_gpu(rank: int) -> None:
    """Keep this process to the CPU cores beside its GPU, where the driver tells: other sockets' memory is slower."""
    if near := cores_beside(rank) & os.sched_getaffinity(0):
        os.sched_setaffinity(0, near)


def resolve_device(wanted: Device, chosen: Optional[Sequence[str]] = None) -> Choice:
    """cpu, cuda or mps; ``chosen`` is compute.devices. Raises ``ConfigError`` when the wanted one is not there."""
    if wanted is Device.cpu:
        return Choice("cpu", "as configured")
    if wanted is not Device.mps and (found := gpus(chosen)) and not idle_accelerator():
        return Choice("cuda", "; ".join(dict.fromkeys(str(gpu) for gpu in found)))
    if wanted is Device.cuda or chosen:
        raise ConfigError(f"compute.device={wanted.name}: {idle_accelerator() or 'no CUDA device is visible'}")
    if _has_mps():
        return Choice("mps", "Apple GPU")
    if wanted is Device.mps:
        raise ConfigError("compute.device=mps: this machine has no Apple GPU")
    return Choice("cpu", idle_accelerator() or "no GPU is visible")


def idle_accelerator() -> Optional[str]:
    """What stands here unused because the installed torch is built for something else; None: nothing is known to.

    The build is the local part of torch's version, as its packages have it: 2.13.0+cpu, +cu130, +rocm6.4, +xpu.
    """
    torch = installed_version("torch") or ""
    build = torch.partition("+")[2]
    if build == "cpu" and gpus():
        return f"{gpus()[0].name} is not used: torch {torch} is built without CUDA"
    if build.startswith(("rocm", "xpu")):
        maker = "AMD" if build.startswith("rocm") else "Intel"
        return f"torch {torch} is built for {maker}'s GPUs, on which nothing here was ever tried: they are not used"
    return None


def _has_mps() -> bool:
    return os.uname().sysname == "Darwin" and os.uname().machine == "arm64"


PARAMETERS = {True: "frozen weights in bf16, adapters in fp32", False: "fp32 parameters"}  # with adapters or without


def resolve_precision(
    wanted: Precision, device: str, chosen: Optional[Sequence[str]] = None, adapters: bool = False
) -> Choice:
    """fp32, bf16 or pure_bf16. ``auto`` keeps what is trained in fp32 and uses bf16 arithmetic where it is fast.

    Adapters are trained in fp32 whatever their base is kept in, so with them pure_bf16 is bf16.
    """
    if wanted is Precision.pure_bf16 and adapters:
        return Choice("bf16", f"as configured: {PARAMETERS[True]}, bf16 autocast")
    if wanted is not Precision.auto:
        return Choice(wanted.value, "as configured")
    autocast = f"{PARAMETERS[adapters]}, bf16 autocast"
    if device == "cuda":
        capability = min(gpu.compute_capability for gpu in gpus(chosen))
        if capability >= BF16_COMPUTE_CAPABILITY:
            return Choice("bf16", f"{autocast}: compute capability {capability}")
        return Choice("fp32", f"compute capability {capability} emulates bf16")
    if device == "cpu":
        flag = next((flag for flag in BF16_CPU_FLAGS if flag in cpu_flags()), None)
        if flag is not None:
            return Choice("bf16", f"{autocast}: the CPU has {flag}")
        return Choice("fp32", "the CPU has neither amx_bf16 nor avx512_bf16")
    return Choice("fp32", f"bf16 is not used on {device}")


TF32_COMPUTE_CAPABILITY = 8.0  # Ampere
LOADER_PROCESSES = 2  # rows are tokenised already: two of them keep ahead of any GPU
CORES_FOR_LOADERS = 4  # per device: below, they would take the cores that the training needs


def resolve_tuning(compute: ComputeConfig, device: str, precision: Precision) -> dict[str, Choice]:
    """What a device has for speed, each with its reason; nothing where there is none. ``precision`` as configured.

    Raises ``ConfigError`` for what the device does not have.
    """
    if device != "cuda":
        return _configured(compute, device)
    return {
        "tf32": _tf32(compute, precision),
        "fused_optimizer": _switch(compute.fused_optimizer, "one kernel a step, no copy of the gradients"),
        "pinned_memory": _switch(compute.pinned_memory, "batches are copied while the GPU computes"),
        "dataloader_num_workers": _loaders(compute),
    }


def _configured(compute: ComputeConfig, device: str) -> dict[str, Choice]:
    for name in ("tf32", "pinned_memory"):
        if getattr(compute, name):
            raise ConfigError(f"compute.{name}=true: that is CUDA's, and this runs on {device}")
    found = {}
    if compute.fused_optimizer is not None:
        found["fused_optimizer"] = _switch(compute.fused_optimizer, "")
    if compute.dataloader_num_workers is not None:
        found["dataloader_num_workers"] = _loaders(compute)
    return found


def _switch(configured: Optional[bool], reason: str) -> Choice:
    if configured is None:
        return Choice(ON, reason)
    return Choice(ON if configured else OFF, "as configured")


def _tf32(compute: ComputeConfig, precision: Precision) -> Choice:
    capability = min(gpu.compute_capability for gpu in gpus(compute.devices))
    if capability < TF32_COMPUTE_CAPABILITY:
        if compute.tf32:
            raise ConfigError(f"compute.tf32=true: a GPU of compute capability {capability} has no TF32")
        return Choice(OFF, f"compute capability {capability} has none")
    if compute.tf32 is None and precision is Precision.fp32:
        return Choice(OFF, "train.precision=fp32 is exact")
    return _switch(compute.tf32, "fp32 products with 10 bits of mantissa")


def _loaders(compute: ComputeConfig) -> Choice:
    if compute.dataloader_num_workers is not None:
        return Choice(str(compute.dataloader_num_workers), "as configured")
    devices = max(len(gpus(compute.devices)), 1)
    if cpu_count() // devices < CORES_FOR_LOADERS:
        return Choice("0", f"{cpu_count()} CPU cores for {devices} GPU(s): none to spare")
    return Choice(str(LOADER_PROCESSES), "processes that collate ahead")


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


# What says who a process is among others, and how accelerate is to train, as torch.distributed.run, accelerate, Slurm's
# PMI, Open MPI and MVAPICH name it. accelerate reads all of these, whoever left them.
_OF_A_RANK = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
}
_OF_A_LAUNCHER = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")


def forget_other_processes(environment: MutableMapping[str, str]) -> None:
    """Take out of an environment what would overrule the plan: who trains with whom, and how, is decided there."""
    for name in [name for name in environment if name in _OF_A_RANK or name.startswith(_OF_A_LAUNCHER)]:
        del environment[name]


def stand_alone() -> None:
    """Make this command one process that nobody's launcher has numbered.

    Raises ``ConfigError`` when torchrun or `accelerate launch` has started it several times: each would train.
    """
    ranks = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and ranks != "1":
        raise ConfigError(
            f"one of {ranks} processes that torchrun started, and each would train: type the command without torchrun,"
            f" with compute.num_devices={ranks}; sft starts the processes of a run itself"
        )
    forget_other_processes(os.environ)
