"""What a run ran on: versions, devices, code. Part of the record, so that two runs can be told apart later."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "sft-experiments", "torch", "transformers", "trl", "datasets", "accelerate", "peft", "bitsandbytes", "flash-attn",
    "hydra-core", "omegaconf", "wandb", "tensorboard",
)  # fmt: skip


def describe_environment(device: str) -> dict[str, Any]:
    """Versions, git commit, device and thread count, as plain values."""
    return {
        "versions": {name: found for name in PACKAGES if (found := installed_version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
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
