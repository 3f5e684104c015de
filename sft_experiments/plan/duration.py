"""How long a run takes: from the measured speed of a like run, else from its arithmetic and a stated utilisation."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from sft_experiments.errors import RunFolderError
from sft_experiments.models.shape import Shape, peak_flops, training_flops_per_token
from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.metrics import EVAL_LOSS, TOKENS_PER_SECOND, read_events
from sft_experiments.runs.plan_file import read_plan
from sft_experiments.runs.record import Status, read_record

# Share of a device's peak that a well-set run reaches; measured MFU of published training runs is 0.3 to 0.5
# (e.g. 0.38-0.43 on 8k to 16k H100s: Llama 3, arXiv:2407.21783, table 4).
UTILISATION = 0.35
# One core's matrix products in fp32, and the least time of a micro-batch: rough values of an x86 server core, good to a
# factor of two or three. A like run that was recorded is always preferred to them.
CPU_FLOPS_PER_THREAD = 30e9
LEAST_SECONDS_PER_MICRO_BATCH = 0.006
GPU_LEAST_SECONDS_PER_MICRO_BATCH = 0.03


@dataclass(frozen=True)
class Duration:
    """Seconds, and what they rest on."""

    seconds: float
    basis: str


@dataclass(frozen=True)
class Load:
    """The work of one run."""

    tokens: float  # all epochs
    micro_batches: float
    mean_length: float
    trainable_fraction: float
    recomputes: bool  # activation checkpointing runs the forward pass twice
    devices: int = 1  # that share the tokens; ranks on the CPU share the threads as well


def computed_duration(shape: Shape, load: Load, device: str, device_name: str, threads: int) -> Optional[Duration]:
    """From FLOPs. None for a device whose peak is not known."""
    matmul = shape.linear_parameters / shape.experts + shape.vocabulary * shape.hidden
    flops = training_flops_per_token(matmul, load.trainable_fraction, shape.layers, shape.hidden, load.mean_length)
    flops += 2 * matmul if load.recomputes else 0
    if device == "cpu":
        speed, least = CPU_FLOPS_PER_THREAD * threads, LEAST_SECONDS_PER_MICRO_BATCH
        giga = CPU_FLOPS_PER_THREAD / 1e9
        basis = f"computed: {giga:g} GFLOP/s per thread, at least {1000 * least:g} ms a micro-batch"
    else:
        peak = peak_flops(device_name)
        if peak is None:
            return None
        speed, least = peak * UTILISATION * load.devices, GPU_LEAST_SECONDS_PER_MICRO_BATCH
        basis = f"computed: {UTILISATION:.0%} of {device_name}'s {peak / 1e12:g} TFLOP/s"
    return Duration(max(load.tokens * flops / speed, load.micro_batches * least), basis)


@dataclass(frozen=True)
class Likeness:
    """What two runs must share for one's speed to tell about the other's."""

    model: str
    device: str  # as resolved: cpu, cuda or mps
    device_name: str
    precision: str
    threads: int
    method: str
    max_length: int
    packing: str
    num_devices: int = 1


@dataclass(frozen=True)
class Measured:
    """A completed run whose speed can be read from its folder."""

    likeness: Likeness
    train_seconds: float  # evaluations and saving included
    tokens: float
    effective_batch_size: int
    folder: RunFolder


def measured_runs(root: Path) -> list[Measured]:
    """Every completed run below ``root``. Records that cannot be read tell nothing."""
    found = [_measured(folder) for folder in find_run_folders(root)] if root.is_dir() else []
    return [run for run in found if run is not None]


def _measured(folder: RunFolder) -> Optional[Measured]:
    try:
        record, plan = read_record(folder), read_plan(folder)
        if record.status is not Status.completed or record.attempts != 1:
            return None  # a resumed run's seconds do not cover all its tokens
        config = record.config
        likeness = Likeness(
            model=config["model"]["name"],
            device=plan.device.value,
            device_name=record.environment["device"],
            precision=plan.precision.value,
            threads=plan.threads,
            method=config["peft"]["method"],
            max_length=config["dataset"]["max_length"],
            packing=config["dataset"]["packing"],
            num_devices=plan.batch.num_devices,
        )
        seconds, tokens = record.timings["train"], record.metrics["tokens"]
        return Measured(likeness, seconds, tokens, plan.batch.effective_batch_size, folder)
    except (RunFolderError, ValueError, KeyError, TypeError):  # unreadable, or of another version: it tells nothing
        return None


def from_measured(
    runs: list[Measured], like: Likeness, effective_batch_size: int, tokens: float, evaluations: int
) -> Optional[Duration]:
    """The time at the speed of the like run with the nearest effective batch size; None without a like run.

    Training goes by its tokens per second, every evaluation (with its generations and checkpoint) by what one cost.
    """
    matching = sorted(
        (run for run in runs if run.likeness == like),
        key=lambda run: abs(run.effective_batch_size - effective_batch_size),
    )
    for run in matching:
        events = list(read_events(run.folder.metrics)) if run.folder.metrics.is_file() else []
        speeds = [event[TOKENS_PER_SECOND] for event in events if TOKENS_PER_SECOND in event]
        looks = sum(EVAL_LOSS in event for event in events)
        if speeds and looks:
            speed = statistics.median(speeds)
            look = max(0.0, run.train_seconds - run.tokens / speed) / looks
            basis = f"measured: {speed:,.0f} tokens/s and {look:.2g} s an evaluation in {run.folder.path}"
            return Duration(tokens / speed + evaluations * look, basis)
    return None
