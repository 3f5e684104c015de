"""Synthetic run folders, written through Record.write, with a loss surface that the test knows."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from sft_experiments.results.collect import Collection, Run
from sft_experiments.results.rank import Comparison, compare_runs
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import BatchPlan, Choice, Plan, StepPlan, write_plan
from sft_experiments.runs.record import Failure, Record, Status
from sft_experiments.values import flatten

RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
BATCHES = [8, 16, 32]
Surface = Callable[[float, int], float]


def bowl(optimum: float = 2e-3, best_batch: int = 16, steepness: float = 0.4, floor: float = 0.3) -> Surface:
    """A loss that rises quadratically with the distance from an optimum, in decades and octaves."""

    def loss(rate: float, batch: int) -> float:
        return (
            floor + steepness * math.log10(rate / optimum) ** 2 + 0.02 * steepness * math.log2(batch / best_batch) ** 2
        )

    return loss


def config_of(rate: float, batch: int, seed: int, **changes: Any) -> dict[str, Any]:
    """A resolved config: the settings that reports look at, and some that decide nothing."""
    config: dict[str, Any] = {
        "name": "demo",
        "output_dir": "outputs",
        "model": {"name": "tiny", "recommended": {"learning_rate": 2e-3}},
        "dataset": {"name": "demo", "max_length": 64},
        "scheduler": {"name": "cosine", "warmup_ratio": 0.1},
        "train": {
            "learning_rate": rate,
            "effective_batch_size": batch,
            "num_train_epochs": 2.0,
            "weight_decay": 0.01,
            "seed": seed,
            "data_seed": seed,
        },
        "logger": {"trackers": []},
    }
    for key, value in changes.items():
        group, name = key.split("__")
        config[group][name] = value
    return config


def make_run(
    sweep: Path,
    rate: float,
    batch: int,
    objective: float | None,
    seed: int = 42,
    status: Status = Status.completed,
    steps: tuple[int, int] | None = (200, 20),
    **changes: Any,
) -> Run:
    """One run, not on disk.

    ``steps``: all and those of warmup; None: it left no plan. ``changes`` replace fields of the record, or of its
    config as ``train__seed=1``.
    """
    settings = {key: changes.pop(key) for key in list(changes) if "__" in key}
    label = f"learning_rate={rate:g},effective_batch_size={batch}" + (f",seed={seed}" if seed != 42 else "")
    suffix = "".join(f"-{value}" for value in settings.values())
    folder = RunFolder(sweep / f"{label}{suffix}-{seed:04x}{batch:04x}".replace("/", "_"))
    failed = status in {Status.failed, Status.killed, Status.oom, Status.diverged, Status.timeout}
    tail = [f"step {step} loss nan" for step in range(3)]
    values: dict[str, Any] = {
        "trial_id": folder.path.name[-8:],
        "name": "demo",
        "label": label,
        "status": status,
        "started_at": "2026-01-01T00:00:00Z",
        "finished_at": "2026-01-01T00:01:00Z",
        "overrides": ["model=tiny", "dataset=demo"],
        "axes": {"train.learning_rate": rate, "train.effective_batch_size": batch},
        "sweep": sweep.name,
        "command": f"sft train model=tiny dataset=demo train.learning_rate={rate:g} train.effective_batch_size={batch}",
        "config": config_of(rate, batch, seed, **settings),
        "objective": objective,
        "metrics": {
            **{"best/step": 180, "tokens": 120_000, "total_steps": 200, "best/eval/loss": objective},
            "train/tokens_per_second": 120_000 / (8.0 + 64 / batch),  # 2 s were evaluations
        },
        "timings": {"train": 10.0 + 64 / batch, "total": 14.0 + 64 / batch},
        "environment": {
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "git": {"commit": "0123456789abcdef", "dirty": False},
            "device": "cpu",
        },
        "fingerprints": {"train_data": "aa", "validation_data": "bb", "model": "cc"},
        "failure": Failure("FloatingPointError", "loss is nan at step 3", tail) if failed else None,
    }
    record = Record(**(values | changes))
    run = Run(folder, record, flatten(record.config))
    run.__dict__["plan"] = None if steps is None else plan_of(rate, batch, steps)  # where the property keeps it
    return run


def plan_of(rate: float, batch: int, steps: tuple[int, int]) -> Plan:
    """The plan of a run on the CPU."""
    return Plan(
        BatchPlan(batch, 1, 1),
        Choice("cpu", "no GPU is visible"),
        Choice("fp32", "a tiny model"),
        threads=1,
        values={"train.learning_rate": {"value": rate, "origin": "command line"}},
        steps=StepPlan(100 * batch, 100, *steps, batch),
    )


def write_run(
    sweep: Path,
    rate: float,
    batch: int,
    objective: float | None,
    seed: int = 42,
    status: Status = Status.completed,
    curves: bool = False,
    **changes: Any,
) -> RunFolder:
    """One run folder; see ``make_run``."""
    run = make_run(sweep, rate, batch, objective, seed, status, **changes)
    run.record.write(run.folder)
    if run.plan is not None:
        write_plan(run.folder, run.plan)
    if curves:
        write_curves(run.folder, rate, batch, objective if objective is not None else 2.0, seed)
    return run.folder


def write_curves(
    folder: RunFolder, rate: float, batch: int, final: float, seed: int = 42, num_steps: int = 200
) -> None:
    """A falling train and eval loss, a cosine schedule with warmup, gradient norm, throughput and memory."""
    random = Random(f"{rate} {batch} {seed}")
    lines: list[dict[str, Any]] = []
    for step in range(0, num_steps + 1, max(num_steps // 40, 1)):
        where: dict[str, Any] = {"step": step, "tokens": step * 600, "epoch": 2 * step / num_steps, "time": step * 0.05}
        progress = step / num_steps
        loss = final + (5.0 - final) * math.exp(-8 * progress)
        if step:
            schedule = min(step / (0.1 * num_steps), 0.5 + 0.5 * math.cos(math.pi * progress))
            lines.append(
                where
                | {
                    "train/loss": loss * (0.95 + 0.05 * random.random()),
                    "train/grad_norm": 0.5 + random.random(),
                    "train/learning_rate": rate * schedule,
                    "train/tokens_per_second": 9000 + 500 * random.random(),
                    "memory/host_rss_gib": 1.2 + 0.1 * progress,
                }
            )
        if step % max(num_steps // 10, 1) == 0:
            lines.append(where | {"eval/loss": loss * 1.01, "eval/exact_match": min(progress * 1.2, 0.97)})
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def grid_objectives(
    surface: Surface | None = None,
    noise: float = 0.0,
    num_seeds: int = 1,
    rates: Iterable[float] = RATES,
    batches: Iterable[int] = BATCHES,
    random: Random | None = None,
) -> Iterator[tuple[float, int, float, int]]:
    """(rate, batch, objective, seed) of a sweep; ``noise`` is the standard deviation between seeds."""
    surface, random = surface or bowl(), random or Random(0)
    for rate, batch, seed in product(rates, batches, range(42, 42 + num_seeds)):
        yield rate, batch, surface(rate, batch) + random.gauss(0, noise), seed


def write_grid(sweep: Path, *args: Any, curves: bool = False, **options: Any) -> Path:
    """A sweep on disk in which every trial completed; see ``grid_objectives``."""
    for rate, batch, objective, seed in grid_objectives(*args, **options):
        write_run(sweep, rate, batch, objective, seed, curves=curves)
    return sweep


def compare_grid(*args: Any, **options: Any) -> Comparison:
    """A comparison of a sweep that is not on disk, for tests that need hundreds of them."""
    runs = [make_run(Path("sweep"), *trial) for trial in grid_objectives(*args, **options)]
    return compare_runs(Collection(runs, []))


def write_extras(folder: RunFolder, samples: list[dict[str, Any]], data_report: dict[str, Any]) -> None:
    """Sample generations and the data gate's report, as the worker writes them."""
    folder.samples.write_text("".join(json.dumps(line) + "\n" for line in samples), encoding="utf-8")
    folder.data_report.write_text(json.dumps(data_report), encoding="utf-8")
