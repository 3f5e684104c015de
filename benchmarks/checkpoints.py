"""C8: what the checkpoints of a 3x3 grid cost, in bytes and in CPU seconds, against the Trainer's defaults.

``python -m benchmarks.checkpoints``. Each contender trains the grid in one process, five looks at the validation data a
run, saving at each look and restoring the best at the end; the peers keep what the Trainer keeps by default, which is
everything. A third peer does not look for the best: one checkpoint a run, the Trainer's own every 500 steps.
Bytes are counted on disk: the most at any moment, and what is left. Gate: the same best evaluation in every cell (for
TRL it is a mean over batches: all validation rows are one batch here).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.grid import BATCHES, LEARNING_RATES, cells
from benchmarks.harness import table, write_result
from benchmarks.processes import python, run
from benchmarks.world import Job, World, build_world, our_settings, peer_events

CHILD = "--child"
LOOKS = 5
BEST = {"save_strategy": "steps", "load_best_model_at_end": True}
PEERS: dict[str, dict[str, Any]] = {"TRL, best restored": BEST, "TRL, defaults": {}}
OURS = "sft sweep"
TARGET = 4.0


class Meter:
    """Bytes below a folder after each save, and CPU seconds of saving and deleting."""

    def __init__(self, root: Path) -> None:
        self.root, self.seconds, self.saves, self.most = root, 0.0, 0, 0

    def watch(self, owner: Any, method: str, is_save: bool) -> None:
        original = getattr(owner, method)

        def measured(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = original(*args, **kwargs)
            self.seconds += time.process_time() - started
            self.saves += is_save
            self.most = max(self.most, self.bytes())
            return result

        setattr(owner, method, measured)

    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.root.rglob("*") if file.is_file())

    def read(self, losses: dict[str, float]) -> dict[str, Any]:
        return {
            "left": self.bytes(),
            "most": max(self.most, self.bytes()),
            "saves": self.saves,
            "save_cpu_seconds": self.seconds,
            "losses": losses,
        }


def train_ours(world: World, job: Job, root: Path) -> dict[str, Any]:
    """The real sweep with Hydra's basic launcher and trials in this process, so that saving can be timed."""
    from sft_experiments.commands import run
    from sft_experiments.training.callbacks import KeepCheckpoints
    from sft_experiments.training.trainer import ExperimentTrainer

    meter = Meter(root)
    meter.watch(ExperimentTrainer, "_save_checkpoint", True)
    meter.watch(KeepCheckpoints, "on_save", False)
    axes = {"train.learning_rate": LEARNING_RATES, "train.effective_batch_size": BATCHES}
    grid = [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]
    cadence = [f"train.eval_steps={job.steps // LOOKS}", "train.per_device_eval_batch_size=64"]
    process = ["sweep.check=false", "compute.isolate=false", "compute.threads=1", "hydra/launcher=basic"]
    settings = [value for value in our_settings(world, job, root) if not value.startswith("train.eval_steps")]
    run("sweep", [*settings, *cadence, *grid, *process])
    losses = {}
    for file in root.rglob("record.json"):
        record = json.loads(file.read_text())
        train = record["config"]["train"]
        losses[f"{train['learning_rate']}-{train['effective_batch_size']}"] = record["metrics"]["best/eval/loss"]
    return meter.read(losses)


def train_peer(world: World, job: Job, root: Path, changes: dict[str, Any]) -> dict[str, Any]:
    from transformers import Trainer

    from benchmarks import plain_trl

    meter = Meter(root)
    meter.watch(Trainer, "_save_checkpoint", True)
    every = job.steps // LOOKS
    cadence = {"eval_steps": every, "per_device_eval_batch_size": 64, **({"save_steps": every} if changes else {})}
    losses = {}
    for cell in cells(job):
        name = f"{cell.learning_rate}-{cell.batch}"
        paths = {"model": str(world.model), "data": str(world.data), "output": str(root / name)}
        plain_trl.train(**paths, changes={**cadence, **changes}, **asdict(cell))
        losses[name] = min(event["eval_loss"] for event in peer_events(root / name) if "eval_loss" in event)
    return meter.read(losses)


def contender(name: str, world: World, job: Job) -> Callable[[Path], dict[str, Any]]:
    if name == OURS:
        return lambda root: train_ours(world, job, root)
    return lambda root: train_peer(world, job, root, PEERS[name])


def run_child(name: str, world: str, steps: str, root: str) -> None:
    Path(root).mkdir(parents=True)
    result = contender(name, World(Path(world)), Job(int(steps)))(Path(root))
    Path(f"{root}.json").write_text(json.dumps(result))


def measure_grids(root: Path, job: Job) -> dict[str, Any]:
    world = build_world(root / "world", "short")
    results = {}
    for index, name in enumerate((OURS, *PEERS)):
        output = root / f"grid-{index}"
        arguments = (CHILD, name, str(world.root), str(job.steps), str(output))
        run(python("-m", "benchmarks.checkpoints", *arguments), root / f"log-{index}", **world.environment)
        results[name] = json.loads(Path(f"{output}.json").read_text())
    losses = {name: result.pop("losses") for name, result in results.items()}
    difference = max(abs(losses[OURS][cell] - losses["TRL, best restored"][cell]) for cell in losses[OURS])
    assert len(losses[OURS]) == len(cells(job)) and difference < 2e-3, (difference, losses)
    ours = results[OURS]
    return {
        "id": "C8",
        "repeats": 1,
        "steps": job.steps,
        "largest_loss_difference": difference,
        "results": results,
        "times": {
            name: {key: results[name][key] / ours[key] for key in ("left", "most", "save_cpu_seconds")}
            for name in PEERS
        },
        "target": TARGET,
    }


def main() -> None:
    if CHILD in sys.argv:
        run_child(*sys.argv[sys.argv.index(CHILD) + 1 :])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Job.steps)
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure_grids(Path(folder), Job(options.steps))
    write_result("checkpoints", result, options.results)
    rows = [
        (name, one["saves"], one["save_cpu_seconds"], one["most"] / 2**20, one["left"] / 2**20)
        for name, one in result["results"].items()
    ]
    print(table(("grid", "checkpoints", "CPU s of saving", "most MiB", "MiB left"), rows))


if __name__ == "__main__":
    main()
