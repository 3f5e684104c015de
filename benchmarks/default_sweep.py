"""The default sweep, trained to the end: what `make sweep` costs next to the same nine runs without the framework.

``python -m benchmarks.default_sweep``: `sft sweep` on the embedded demo as it comes (three epochs, both trackers, all
validation prompts answered at every evaluation) and without what the peers do not do (no trackers, no answers);
a shell loop of nine plain TRL scripts; the same script in one process under Hydra's basic launcher. The peers start
from the same weights, read the same rows in the same order, evaluate, save and restore the best at the same steps. One
round, because it takes minutes. Gate: the same learning rate at every logged step, the same number of steps and the
same loss before the first one in all nine cells.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import measure, table, write_result
from benchmarks.processes import python, run, sft
from benchmarks.world import World, peer_events

LEARNING_RATES = (3e-4, 2e-3, 1e-2)  # conf/model/size/tiny.yaml; the gate notices when they are others
BATCHES = (4, 16, 64)
OURS, SAME_WORK, LOOP, BASIC = "sft sweep", "sft sweep, the peers' work", "loop of TRL scripts", "Hydra basic + TRL"
NO_MORE_THAN_PEERS = ("logger=none", "generation.exact_match_rows=0", "generation.num_samples=0")
EPOCHS, WARMUP, LOOKS, EVENTS = 3, 0.05, 0.2, 0.02


def build_demo_world(root: Path) -> World:
    """The demo's rows, tokenizer and initial weights as files, for the peers."""
    from sft_experiments.config.hydra import composed
    from sft_experiments.data.sources import DEMO_DEFAULTS, generate_demo_rows
    from sft_experiments.launch.trial import plan_run
    from sft_experiments.training.model import load_model, load_tokenizer

    world = World(root)
    world.data.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = ({"messages": row["messages"]} for row in generate_demo_rows(split, **DEMO_DEFAULTS))
        (world.data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with composed([]) as composition:
        config = plan_run(composition).config
    tokenizer = load_tokenizer(config.model)
    tokenizer.save_pretrained(world.model)
    load_model(config, tokenizer, "fp32", "sdpa").save_pretrained(world.model)
    return world


def peer_changes(batch: int, rows: int) -> dict[str, Any]:
    """Fields of SFTConfig in which the default sweep differs from the job of the other benchmarks."""
    from sft_experiments.plan.arithmetic import resolve_interval

    steps = EPOCHS * -(-rows // batch)
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP,
        "max_length": 64,
        "eval_on_start": True,
        "eval_steps": LOOKS,
        "save_steps": LOOKS,
        "logging_steps": resolve_interval("train.logging_steps", EVENTS, steps),  # SFTConfig rounds shares otherwise
        "save_strategy": "steps",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "greater_is_better": False,
    }


def our_sweep(world: World, root: Path, *more: str) -> tuple[float, float]:
    output = f"output_dir={root}/out"
    return run(sft("sweep", "experiment=demo_grid", output, *more), root, **world.environment, WANDB_MODE="offline")


def trl_loop(world: World, root: Path) -> tuple[float, float]:
    spent = []
    for rate, batch in itertools.product(LEARNING_RATES, BATCHES):
        output = root / "out" / f"{rate}-{batch}"
        settings = {"model": str(world.model), "data": str(world.data), "output": str(output), "learning_rate": rate}
        changes = peer_changes(batch, training_rows(world))
        command = python("-m", "benchmarks.plain_trl", json.dumps({**settings, "changes": changes}))
        spent.append(run(command, root, **world.environment))
    return sum(cpu for cpu, _ in spent), sum(wall for _, wall in spent)


def hydra_trl(world: World, root: Path) -> tuple[float, float]:
    """The script takes what depends on the batch from its size, so one multirun command can hold the grid."""
    files = [f"model={world.model}", f"data={world.data}", f"output={root}/out", "default_sweep=true"]
    axes = [f"learning_rate={','.join(map(str, LEARNING_RATES))}", f"batch={','.join(map(str, BATCHES))}"]
    command = python("-m", "benchmarks.hydra_trl", "-m", *files, *axes, f"hydra.sweep.dir={root}/hydra")
    return run(command, root, **world.environment)


def training_rows(world: World) -> int:
    with (world.data / "train.jsonl").open(encoding="utf-8") as file:
        return sum(1 for _ in file)


CONTENDERS: dict[str, Callable[[World, Path], tuple[float, float]]] = {
    OURS: our_sweep,
    SAME_WORK: lambda world, root: our_sweep(world, root, *NO_MORE_THAN_PEERS),
    LOOP: trl_loop,
    BASIC: hydra_trl,
}


def our_events(output: Path) -> dict[tuple[float, int], list[dict[str, float]]]:
    """(Learning rate, batch) of each cell -> its events."""
    cells = {}
    for file in output.rglob("record.json"):
        train = json.loads(file.read_text())["config"]["train"]
        lines = (file.parent / "metrics.jsonl").read_text().splitlines()
        cells[train["learning_rate"], train["effective_batch_size"]] = [json.loads(line) for line in lines]
    return cells


def check_cells(ours: Path, peer: Path) -> dict[str, float]:
    """Largest differences over all cells. Raises AssertionError when a cell was trained otherwise, or not at all."""
    cells = our_events(ours)
    assert sorted(cells) == sorted(itertools.product(LEARNING_RATES, BATCHES)), sorted(cells)
    rates, first = [0.0], [0.0]
    for (rate, batch), events in cells.items():
        theirs = peer_events(peer / "out" / f"{rate}-{batch}")
        logged = {int(event["step"]): event["learning_rate"] for event in theirs if "learning_rate" in event}
        mine = {int(event["step"]): event["train/learning_rate"] for event in events if "train/learning_rate" in event}
        assert max(logged) == max(mine) and len(logged.keys() & mine.keys()) > 0.9 * len(mine), (rate, batch)
        rates += [abs(logged[step] - mine[step]) / rate for step in logged.keys() & mine.keys()]
        losses = [next(e["eval_loss"] for e in theirs if "eval_loss" in e)]
        first.append(abs(losses[0] - next(event["eval/loss"] for event in events if "eval/loss" in event)))
    assert max(rates) < 1e-6 and max(first) < 0.05, (max(rates), max(first))  # the peers' loss is a mean over batches
    return {"learning_rate": max(rates), "loss_before_training": max(first)}


def best_loss(output: Path) -> float:
    """The lowest evaluation loss of any cell, of ours or of the peers."""
    if ours := our_events(output):
        return min(event["eval/loss"] for events in ours.values() for event in events if "eval/loss" in event)
    folders = [folder for folder in (output / "out").iterdir() if folder.is_dir()]
    return min(event["eval_loss"] for folder in folders for event in peer_events(folder) if "eval_loss" in event)


def measure_sweeps(root: Path, names: list[str]) -> dict[str, Any]:
    world = build_demo_world(root / "world")
    works = {name: lambda name=name: CONTENDERS[name](world, root / slug(name)) for name in names}  # type: ignore[misc]
    measured = measure(works, repeats=1, warmup=0)
    cpu = {name: result.cpu_median for name, result in measured.items()}
    wall = {name: result.wall_median for name, result in measured.items()}
    return {
        "cells": len(LEARNING_RATES) * len(BATCHES),
        "repeats": 1,
        "differences": {
            name: check_cells(root / slug(OURS), root / slug(name)) for name in names if name in (LOOP, BASIC)
        },
        "best_eval_loss": {name: best_loss(root / slug(name)) for name in names},
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "times": {name: cpu[name] / cpu[OURS] for name in names},
        "times_wall": {name: wall[name] / wall[OURS] for name in names},
    }


def slug(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    names = [OURS, *(name for name in options.contenders if name != OURS)]
    with tempfile.TemporaryDirectory() as folder:
        result = measure_sweeps(Path(folder), names)
    write_result("default_sweep", result, options.results)
    rows = [
        (
            name,
            result["cpu_seconds"][name],
            result["wall_seconds"][name],
            result["times"][name],
            result["times_wall"][name],
            result["best_eval_loss"][name],
        )
        for name in names
    ]
    print(table(("contender", "CPU s", "wall s", "times ours, CPU", "times ours, wall", "best eval loss"), rows))


if __name__ == "__main__":
    main()
