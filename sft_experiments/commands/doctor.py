"""`sft doctor`: is this machine ready? One screen, exit code 1 when training could not start. Imports no torch."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.text import Text

from sft_experiments import __version__
from sft_experiments.commands import Command
from sft_experiments.data.store import default_cache_dir
from sft_experiments.errors import ConfigError
from sft_experiments.launch.booking import is_held
from sft_experiments.models.hub import hub_answers, hub_is_offline
from sft_experiments.plan.gpus import Gpu, gpus
from sft_experiments.plan.machine import (
    BF16_CPU_FLAGS,
    cpu_count,
    cpu_flags,
    installed,
    resolve_device,
    resolve_precision,
)
from sft_experiments.schema import Device, Precision, WandbMode
from sft_experiments.terminal import console
from sft_experiments.values import GIB

REQUIRED = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "hydra-core", "omegaconf")
# package -> what it is for, and the extra that installs it
OPTIONAL = {
    "peft": ("LoRA and QLoRA", "peft"),
    "bitsandbytes": ("QLoRA, 8-bit Adam", "quant"),
    "flash-attn": ("the fastest attention on Ampere and newer", "flash"),
    "matplotlib": ("PNG of schedules", "plots"),
    "optuna": ("sweep=optuna", "optuna"),
    "trackio": ("logger=trackio", "trackio"),
}


LOW_DISK_GIB = 5.0
# In a process of its own: importing torch takes a second, and a broken installation may kill the process.
TORCH_FACTS = """
import json, torch
from importlib.util import find_spec
print(json.dumps({
    "cuda": torch.version.cuda, "available": torch.cuda.is_available(),
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    "threads": torch.get_num_threads(),
    "varlen": find_spec("torch.nn.attention.varlen") is not None,
}))
"""


@dataclass(frozen=True)
class Finding:
    """One line: ok, note (works, could be better) or problem (training would fail)."""

    state: str
    name: str
    found: str


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def _doctor(parsed: Namespace) -> int:
    """One screen, or JSON; exit code 1 when training could not start."""
    findings = list(examine())
    if parsed.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    return int(any(finding.state == "problem" for finding in findings))


def examine() -> Iterator[Finding]:
    """Every finding, in the order of the screen."""
    yield Finding("ok", "sft_experiments", f"{__version__}, Python {platform.python_version()}, {platform.system()}")
    yield from _packages()
    yield from _torch()
    yield from _devices()
    yield from _trackers()
    yield from _places()
    yield _hub()


def _packages() -> Iterator[Finding]:
    missing = [name for name in REQUIRED if _version(name) is None]
    found = ", ".join(f"{name} {_version(name)}" for name in REQUIRED if name not in missing)
    yield Finding("ok", "packages", found)
    if missing:
        yield Finding("problem", "packages", f"missing: {', '.join(missing)}; pip install sft-experiments")
    for name, (purpose, extra) in OPTIONAL.items():
        have = _version(name)
        how = f"not installed, for {purpose}: pip install 'sft-experiments[{extra}]'"
        yield Finding("ok" if have else "note", name, f"{have} ({purpose})" if have else how)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    """What torch itself sees, asked in another process."""
    try:
        answer = subprocess.run([sys.executable, "-c", TORCH_FACTS], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        yield Finding("problem", "torch", "import torch did not finish within 120 s")
        return
    if answer.returncode != 0:
        reason = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]
        yield Finding("problem", "torch", f"cannot be imported: {reason}")
        return
    facts: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    if _gpus() and not facts["available"]:
        why = (
            "built without CUDA"
            if facts["cuda"] is None
            else f"built for CUDA {facts['cuda']}, which the driver refuses"
        )
        yield Finding("problem", "torch", f"a GPU is there but torch cannot use it: {why}")
    yield Finding("ok", "torch sees", ", ".join(facts["devices"]) or f"no GPU, {facts['threads']} CPU threads")
    yield _attention(facts)


def _attention(facts: dict[str, Any]) -> Finding:
    """What attn_implementation=auto takes here (training/attention.py decides for a model)."""
    if facts["available"] and installed("flash_attn"):
        return Finding("ok", "attention", "flash-attn; packed documents stay apart")
    if facts["available"] and facts["varlen"]:
        return Finding("ok", "attention", "sdpa, for packed rows torch's varlen_attn (no flash-attn needed)")
    return Finding("ok", "attention", "sdpa, for packed rows document by document (exact; flash-attn needs a GPU)")


def _gpus() -> tuple[Gpu, ...]:
    """Those that can be used; why others cannot is a finding of its own."""
    try:
        return gpus()
    except ConfigError:
        return ()


def _devices() -> Iterator[Finding]:
    try:
        device = resolve_device(Device.auto)
        precision = resolve_precision(Precision.auto, device.value)
    except ConfigError as error:
        yield Finding("problem", "device", str(error))
        return
    for gpu in _gpus():
        held = "; a run of ours has it" if is_held(gpu) else ""
        yield Finding("note" if gpu.is_busy or held else "ok", f"GPU {gpu.index}", f"{gpu}, {gpu.visible_as}{held}")
    yield Finding("ok", "device", f"{device.value} ({device.reason})")
    yield Finding("ok", "precision", f"{precision.value} ({precision.reason})")
    flags = [flag for flag in (*BF16_CPU_FLAGS, "avx512f", "avx2") if flag in cpu_flags()]
    yield Finding("ok", "CPU", f"{cpu_count()} cores usable; {', '.join(flags) or 'instruction sets unknown'}")


def _trackers() -> Iterator[Finding]:
    from sft_experiments.monitor.trackers.wandb_mode import choose_mode  # slow: wandb, over a second

    yield Finding("ok", "tensorboard", str(_version("tensorboard") or "not installed: pip install tensorboard"))
    mode, reason = choose_mode(WandbMode.auto)
    yield Finding("ok" if mode == "online" else "note", "W&B", f"{mode}: {reason}")


def _places() -> Iterator[Finding]:
    """Where runs and caches go: writable, and room left."""
    cache = default_cache_dir()
    for name, folder in (("runs", Path("outputs")), ("cache", cache), ("temporary files", Path(tempfile.gettempdir()))):
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(existing).free / GIB
        if not os.access(existing, os.W_OK):
            yield Finding("problem", name, f"{existing} cannot be written")
        else:
            state = "ok" if free >= LOW_DISK_GIB else "note"
            yield Finding(state, name, f"{folder}, {free:.0f} GiB free")


def _hub() -> Finding:
    if hub_is_offline():
        return Finding("note", "Hugging Face Hub", "HF_HUB_OFFLINE is set: local folders and the cache only")
    if not hub_answers():
        return Finding("note", "Hugging Face Hub", "does not answer: local folders and the cache only")
    token = (
        "a token" if os.environ.get("HF_TOKEN") or (Path.home() / ".cache/huggingface/token").exists() else "no token"
    )
    return Finding("ok", "Hugging Face Hub", f"answers; {token} (gated models need one: hf auth login)")


def _show(findings: list[Finding]) -> None:
    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    width = max(len(finding.name) for finding in findings)
    for finding in findings:  # lines, not a table: it would break commands to paste
        console.print(Text(f"{finding.state:<9}", style=colours[finding.state]), end="")
        console.print(Text(f"{finding.name:<{width}}  {finding.found}"))
    problems = sum(finding.state == "problem" for finding in findings)
    console.print(f"{problems} problem(s)" if problems else "ready: sft sweep runs the embedded demo")


COMMANDS = {"doctor": Command(_doctor, _add_arguments)}
