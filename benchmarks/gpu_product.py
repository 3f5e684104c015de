"""Our side of the GPU suite: the commands that a user gives, each in a process, and what their run folders say.

Nothing here knows how a run is made: `sft plan` says what it expects, `sft train` and `sft sweep` do it, and
metrics.jsonl, plan.json and record.json hold what became of it.
"""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu_contenders import LEARNING_RATE, LOGGING_STEPS, SEED, Chat, Size, build_chats
from benchmarks.processes import REPOSITORY, sft
from benchmarks.world import SPECIAL, TEMPLATE

GIB = 2**30
VALIDATION_CHATS = 8
GRACE_SECONDS = 15.0
CHOICES = ("device", "precision", "attention", "loss_head")  # of plan.json


class CommandFailed(Exception):
    """A command did not do its work; the message is the end of what it said."""


def run_sft(root: Path, seconds: float, *arguments: str) -> str:
    """What a command prints, run in ``root`` with a cache of its own. Raises ``CommandFailed``, also out of time."""
    own = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), "SFT_CACHE_DIR": str(root / "cache")}
    printed, errors = root / "printed.txt", root / "errors.txt"  # no pipes, which workers would hold open
    with printed.open("w") as stdout, errors.open("w") as stderr:
        process = subprocess.Popen(sft(*arguments), cwd=root, env={**os.environ, **own}, stdout=stdout, stderr=stderr)
        try:
            code = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            stop(process)
            raise CommandFailed(f"sft {arguments[0]}: not done in {seconds:.0f} s") from None
    if code:
        said = (errors.read_text() or printed.read_text()).strip()[-400:]
        raise CommandFailed(f"sft {arguments[0]}: exit code {code}: {said}")
    return printed.read_text()


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a command, which asks its workers; they end by themselves when it is killed."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- what it is given


def write_files(size: Size, steps: int, folder: Path) -> None:
    """The chats of the suite as a data file, and a tokenizer in which each word is one token."""
    folder.mkdir()
    words = {name: number for number, name in enumerate(SPECIAL)}
    words |= {word(number): number for number in range(len(SPECIAL), size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[-1],
        additional_special_tokens=SPECIAL[1:-1],
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(folder / "tokenizer")
    chats = build_chats(size, steps)
    write_chats(folder / "train.jsonl", chats)
    write_chats(folder / "validation.jsonl", [(answer, question) for question, answer in chats[:VALIDATION_CHATS]])


def word(number: int) -> str:
    return f"w{number}"


def write_chats(file: Path, chats: Sequence[Chat]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for turns in chats:
            roles = zip(("user", "assistant"), (" ".join(map(word, ids)) for ids in turns), strict=True)
            stream.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in roles]}) + "\n")


def settings(size: Size, name: str, files: Path, steps: int, device: str) -> list[str]:
    """A user's settings of the run that TRL's contenders do: a model of this shape with random weights."""
    return [
        *("model=tiny", f"name={name}", f"model.tokenizer={files}/tokenizer", f"compute.device={device}"),
        *(f"++model.config.{key}={value}" for key, value in size.config.items()),
        f"peft={'lora' if size.lora else 'none'}",
        *chat_files(files, size.length),
        *short_run(steps),
        *(f"train.effective_batch_size={size.batch}", f"train.per_device_train_batch_size={size.batch}"),
        *(f"train.learning_rate={LEARNING_RATE}", "train.weight_decay=0", "train.max_grad_norm=1"),
    ]


def chat_files(files: Path, length: int) -> list[str]:
    """Packed."""
    return [
        *("dataset=messages", f"dataset.train_files={files}/train.jsonl"),
        *(f"dataset.validation_files={files}/validation.jsonl", f"dataset.max_length={length}", "dataset.packing=bfd"),
    ]


def short_run(steps: int) -> list[str]:
    """A few steps, one evaluation after them, no answers."""
    return [
        *("logger=none", "scheduler=constant", f"train.max_steps={steps}", f"train.eval_steps={steps}"),
        *("train.eval_on_start=false", "train.load_best_model_at_end=false", "generation.num_samples=0"),
        *(f"train.logging_steps={min(LOGGING_STEPS, steps // 2)}", f"train.seed={SEED}", "monitor.terminal=quiet"),
    ]


# ---- what it says


def train(root: Path, seconds: float, arguments: Sequence[str]) -> dict[str, Any]:
    """`sft train` with these settings, and what its folder says next to what `sft plan` expected."""
    (planned,) = plan(root, arguments)["cells"]
    run_sft(root, seconds, "train", *arguments)
    return figures(root, planned)


def sweep(root: Path, seconds: float, arguments: Sequence[str]) -> dict[str, Any]:
    """`sft sweep` with these settings and axes; the figures of each cell."""
    arguments = ["sweep=lr_x_batch", *arguments]  # which is what `sft sweep` adds, and `sft plan` does not
    planned, began = plan(root, arguments), time.perf_counter()
    run_sft(root, seconds, "sweep", *arguments)
    return {
        "wall_seconds": time.perf_counter() - began,
        "concurrent_trials": planned["concurrent_trials"],
        "cells": [{"axes": cell["axes"], **figures(root, cell)} for cell in planned["cells"]],
    }


def plan(root: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The content of `sft plan --json`."""
    found: dict[str, Any] = json.loads(run_sft(root, 60, "plan", "--json", *arguments))
    return found


def figures(root: Path, planned: dict[str, Any]) -> dict[str, Any]:
    """Of one completed run: its speed after warm-up, its peak against the plan, and what was chosen for it."""
    folder = root / planned["folder"]
    record, chosen = (json.loads((folder / name).read_text()) for name in ("record.json", "plan.json"))
    if record["status"] != "completed":
        raise CommandFailed(f"{folder.name}: {record['status']}: {(record['failure'] or {}).get('message')}")
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        **speed([event for event in events if "train/loss" in event]),
        **memory(events, planned["memory"]),
        **{name: chosen[name]["value"] for name in CHOICES},
        "tuning": {name: choice["value"] for name, choice in chosen["tuning"].items()},
        "batch": chosen["batch"],
        "objective": record["objective"],
        "versions": record["environment"]["versions"],
        "seconds": record["timings"],
    }


def speed(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Between the first training event and the last: all before the first is warm-up.

    By the axes `tokens` and `time`: an event holds a loss, so the device has done the work that it counts.
    """
    first, last = events[0], events[-1]
    tokens, seconds = last["tokens"] - first["tokens"], last["time"] - first["time"]
    return {
        "first_logged_loss": first["train/loss"],
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else None,
        "step_ms": 1e3 * seconds / (last["step"] - first["step"]) if seconds else None,
    }


def memory(events: Sequence[dict[str, Any]], estimate: dict[str, float]) -> dict[str, Any]:
    """The most that tensors took on a device, and the plan's estimate of it, without what is no tensor's (reserve)."""
    peak = max((event["memory/device_peak_gib"] for event in events if "memory/device_peak_gib" in event), default=None)
    expected = (estimate["total"] - estimate["reserve"]) / GIB
    return {"peak_gib": peak, "planned_gib": expected, "peak_to_plan": peak / expected if peak else None}
