"""What the GPU suite measures, part by part: ours are commands in processes of their own, TRL trains in this one."""

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback

from benchmarks import gpu_product, grid
from benchmarks.gpu_contenders import LOGGING_STEPS, Contender, Size, build_rows, build_trainer
from benchmarks.gpu_idle import STEPS as PROFILED_STEPS
from benchmarks.gpu_idle import idle_of_trl
from benchmarks.loss_and_attention import attention_case, loss_head_case
from benchmarks.processes import python, run
from benchmarks.world import Job, build_world

SIZES = {
    "0.5B": Size((896, 24, 14, 2, 4864), 151936, 2048, 16, target=110_000),
    "1.2B": Size((2048, 16, 32, 8, 8192), 128256, 2048, 8, target=55_000, reserve=75),
    # Random weights are drawn in fp32 on the host: 8 billion of them take a minute or two.
    "8B LoRA": Size((4096, 32, 32, 8, 14336), 128256, 4096, 2, lora=True, tied=False, target=12_500, reserve=170),
}
TOYS = {
    "toy": Size((64, 2, 4, 2, 128), 512, 128, 2, target=0),
    "toy LoRA": Size((64, 2, 4, 2, 128), 512, 128, 2, lora=True, tied=False, target=0),
}
OURS, COMPILED, SAME = "sft train", "sft train, compiled", "TRL, packed, no checkpointing"
COMMANDS = {OURS: [], COMPILED: ["+train.extra.torch_compile=true"]}
PEERS = {
    SAME: Contender(),
    "TRL, unpacked, grouped by length": Contender(packed=False, grouped=True),
    "TRL, its defaults": Contender(checkpointing=True),
}
WARM_UP, MEASURED = LOGGING_STEPS, 2 * LOGGING_STEPS  # optimizer steps
SWEPT_STEPS = 20  # of each cell
METHODS = {  # in which the pretrained model is trained
    "full": ("peft=none", "train.learning_rate=2e-5,5e-5"),
    "LoRA": ("peft=lora", "train.learning_rate=2e-4,5e-4"),
}
LOSS_TOLERANCE = 0.05  # nats: bf16, mean of the steps before the first event; other random weights of the same kind
CELL_TOLERANCE = 0.02  # nats: any step of a cell, the same weights in fp32 on two kernels
NO_TIME = "skipped: no time left"


@dataclass
class Budget:
    """Wall seconds left."""

    seconds: float

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.seconds

    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass
class Suite:
    """Where it runs, what is left of its time, and what it has found so far."""

    toy: bool
    root: Path
    budget: Budget
    model: Path | None = None  # a folder with a pretrained one
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each size

    @property
    def device(self) -> str:
        return "cpu" if self.toy else "cuda"

    @property
    def cards(self) -> int:
        return 2 if self.toy else torch.cuda.device_count()

    @property
    def sizes(self) -> dict[str, Size]:
        return TOYS if self.toy else SIZES

    @property
    def swept_steps(self) -> int:
        return 2 if self.toy else SWEPT_STEPS

    def files(self, size: Size, steps: int) -> Path:
        """The data file and tokenizer of a size."""
        folder = self.root / f"files-{size.vocabulary}-{size.length}-{steps}"
        if not folder.is_dir():
            gpu_product.write_files(size, steps, folder)
        return folder

    def settings(self, label: str, steps: int) -> list[str]:
        size = self.sizes[label]
        name = label.replace(" ", "-")
        return gpu_product.settings(size, name, self.files(size, steps), steps, self.device)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new one, for the commands of one part; with checkpoints in it, it would fill the disk if it stayed."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            yield Path(folder)

    @contextmanager
    def one_card(self) -> Iterator[None]:
        """Commands see the first card only: a Trainer that sees several spreads each batch over them."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        with patch.dict(os.environ, {} if self.toy else {"CUDA_VISIBLE_DEVICES": visible}):
            yield


# ---- the models of each size


class Window(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Wall seconds of the measured steps, with everything finished on the device at both ends."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            synchronize()
            self.start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize()
        self.seconds = time.perf_counter() - self.start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give memory back: commands are other processes, and would find the card in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def train_with_trl(size: Size, how: Contender, device: str) -> dict[str, Any]:
    """Tokens per second of one contender, its loss, and the most memory it took."""
    with tempfile.TemporaryDirectory() as folder:
        rows = build_rows(size, how, WARM_UP + MEASURED)
        trainer, counts = build_trainer(size, how, rows, WARM_UP + MEASURED, device, folder)
        window = Window()
        trainer.add_callback(window)
        trainer.train()
    tokens = sum(counts[WARM_UP : WARM_UP + MEASURED])
    losses = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / window.seconds,
        "step_ms": 1e3 * window.seconds / MEASURED,
        "first_logged_loss": losses[0],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def train(suite: Suite, label: str, name: str) -> dict[str, Any]:
    release(suite.device)
    if name in PEERS:
        return train_with_trl(suite.sizes[label], PEERS[name], suite.device)
    settings = [*suite.settings(label, WARM_UP + MEASURED), *COMMANDS[name]]
    with suite.folder() as folder:
        return gpu_product.train(folder, suite.budget.left(), settings)


def attempt(work: Callable[[], Any]) -> Any:
    """What it returns. What goes wrong with one contender or part is its result, and the others go on."""
    try:
        return work()
    except (Exception, SystemExit) as error:  # noqa: BLE001 memory, a compiler, a command: whatever it dies of
        return f"failed: {type(error).__name__}: {str(error).strip()[-400:]}"


def compare(suite: Suite, names: list[str]) -> dict[str, Any]:
    """These contenders at every size, as far as the time allows; all that is known of each size."""
    for label, size in suite.sizes.items():
        known = suite.contenders.setdefault(label, {})
        for name in names:
            enough = suite.budget.left() > size.reserve
            known[name] = attempt(partial(train, suite, label, name)) if enough else NO_TIME
    return {
        label: {"target": size.target, "size": asdict(size), "contenders": known, **judge(known)}
        for (label, size), known in zip(suite.sizes.items(), suite.contenders.values(), strict=True)
    }


def judge(contenders: dict[str, Any]) -> dict[str, Any]:
    """Ours against TRL: the gate (as many tokens in the measured steps, and the loss), and how many times as fast."""
    done = {name: found for name, found in contenders.items() if isinstance(found, dict)}
    if OURS not in done or SAME not in done:
        return {}
    ours, peer = done[OURS], done[SAME]
    difference = abs(ours["first_logged_loss"] - peer["first_logged_loss"])
    same = ours["tokens"] == peer["tokens"] and difference < LOSS_TOLERANCE
    words = f"{ours['tokens']} and {peer['tokens']} tokens, losses differ by {difference:.3f} nats"
    best = {
        own: max(found["tokens_per_second"] for name, found in done.items() if (name in COMMANDS) is own)
        for own in (True, False)
    }
    return {
        "loss_difference": difference,
        "gate": "passed" if same else f"failed: {words}",
        "times_best_trl": best[True] / best[False],
    }


# ---- the parts: each returns what it found, or in words why it was skipped


def kernels(suite: Suite) -> dict[str, Any]:
    """The loss head and the attention of packed rows alone; milliseconds of wall time, synchronised."""
    dtype, device, toy = torch.bfloat16, suite.device, suite.toy
    heads = {"toy": (64, 512)} if toy else {"0.5B": (896, 151936), "8B": (4096, 128256)}
    positions = 256 if toy else 8192
    cases = {
        f"loss head {name}": loss_head_case(width, vocabulary, dtype, 3, device, positions)
        for name, (width, vocabulary) in heads.items()
    }
    for tokens in (256,) if toy else (2048, 8192):
        cases[f"attention {tokens}"] = attention_case(tokens, dtype, 3, device)
    return cases


def sizes(suite: Suite) -> dict[str, Any]:
    """Ours, and TRL with the same settings."""
    return compare(suite, [OURS, SAME])


def nine_cells(suite: Suite) -> dict[str, Any]:
    """A 3x3 grid on the tiny model, on one card: `sft sweep` against TRL under Hydra's basic launcher; wall seconds."""
    job = Job(suite.swept_steps, device=suite.device)
    contenders = {"sft sweep": grid.our_sweep, "TRL under Hydra": grid.hydra_trl}
    with suite.folder() as root, suite.one_card():
        world = build_world(root / "world")
        seconds = {name: work(world, job, root / name)[1] for name, work in contenders.items()}
        difference = grid.check_cells(job, root / "sft sweep", root / "TRL under Hydra", CELL_TOLERANCE)
    return {
        "cells": len(grid.cells(job)),
        "wall_seconds": seconds,
        "times": seconds["TRL under Hydra"] / seconds["sft sweep"],
        "largest_loss_difference": difference,
    }


def pretrained(suite: Suite) -> dict[str, Any] | str:
    """2 x 2 cells of a pretrained model, full and with LoRA; their data are chats of a few hundred tokens."""
    if suite.model is None:
        return "skipped: --model names no pretrained model (make real-model makes one)"
    model = ["model=hub", f"model.name={suite.model.resolve()}", f"compute.device={suite.device}", "sweep.check=false"]
    found = {}
    for name, method in METHODS.items():
        with suite.folder() as root:
            data = gpu_product.chat_files(build_world(root / "world").data, 1024)
            cells = ["train.effective_batch_size=2,4", *method, *gpu_product.short_run(suite.swept_steps)]
            found[name] = gpu_product.sweep(root, suite.budget.left(), [*model, *data, *cells])
    return found


def several_cards(suite: Suite) -> dict[str, Any] | str:
    """As many cells as cards, one on each and one after another; and one trial on two cards."""
    if suite.cards < 2:
        return "skipped: one GPU"
    label, size = next(iter(suite.sizes.items()))
    settings = suite.settings(label, WARM_UP + MEASURED)
    rates = ",".join(f"{1e-4 * (1 + cell):.0e}" for cell in range(suite.cards))
    axis = [*settings, f"train.learning_rate={rates}", "sweep.check=false"]
    found: dict[str, Any] = {"cards": suite.cards}
    for name, trials in {"one on each card": suite.cards, "one after another": 1}.items():
        with suite.folder() as root:
            found[name] = gpu_product.sweep(root, suite.budget.left(), [*axis, f"sweep.concurrent_trials={trials}"])
    together = ["compute.num_devices=2", f"train.effective_batch_size={2 * size.batch}"]
    with suite.folder() as root:
        found["one trial on two"] = gpu_product.train(root, suite.budget.left(), [*settings, *together])
    return found


def idle(suite: Suite) -> dict[str, Any]:
    """Waits of the host and idle time of the device, for ours and for TRL with the same settings."""
    label, size = next(iter(suite.sizes.items()))
    settings = suite.settings(label, PROFILED_STEPS)
    with suite.folder() as root, suite.one_card():
        file = root / "idle.json"
        run(python("-m", "benchmarks.gpu_idle", file, *settings), root, SFT_CACHE_DIR=str(root / "cache"))
        ours = json.loads(file.read_text())
    return {OURS: ours, SAME: idle_of_trl(size, PEERS[SAME], suite.device)}


def others(suite: Suite) -> dict[str, Any]:
    """What is good to know beside that."""
    return compare(suite, [name for name in PEERS if name != SAME] + ([] if suite.toy else [COMPILED]))


@dataclass(frozen=True)
class Part:
    """``reserve``: seconds that it may take, it does not start with less left."""

    key: str  # of the result
    work: Callable[[Suite], Any]
    reserve: float = 0.0  # its contenders have their own


PARTS = {  # in the order they run: what matters most first
    "kernels": Part("kernels", kernels, 20),
    "sizes": Part("sizes", sizes),
    "grid": Part("grid", nine_cells, 100),
    "model": Part("model", pretrained, 90),
    "cards": Part("cards", several_cards, 120),
    "idle": Part("idle", idle, 60),
    "others": Part("sizes", others),
}
