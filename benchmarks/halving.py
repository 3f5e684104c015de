"""Successive halving against the full grid on the embedded default, one epoch, three seeds.

Run: python -m benchmarks.halving [FOLDER]. The grid of each seed is trained in full by the real command. A trial of a
sweep with rungs is bit for bit the trial of the grid up to where it stops (tests/sweep/test_halving.py), so what
halving decides, and the tokens it would have trained, are read from the grid's own metrics, with the product's rungs
and the promotion rule written out here.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import table, write_result
from sft_experiments.plan.cadence import rung_step
from sft_experiments.run.folder import RunFolder, find_run_folders
from sft_experiments.run.record import Record, read_record

SEEDS = (42, 43, 44)
RUNGS, FACTOR = (0.2, 0.6), 3  # conf/sweep/asha.yaml
FIXED = ["train.num_train_epochs=1", "logger=none", "generation.num_samples=0", "generation.exact_match_rows=0"]


def train_grid(home: Path, seed: int) -> list[RunFolder]:
    """The default grid, trained in full; a folder that has it already is used as it is."""
    command = [sys.executable, "-m", "sft_experiments", "sweep", f"train.seed={seed}", f"name=grid-{seed}", *FIXED]
    subprocess.run(command, cwd=home, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, stdout=subprocess.DEVNULL)
    return find_run_folders(next((home / "outputs").glob(f"grid-{seed}-*")))


def cell(record: Record) -> str:
    return " ".join(f"{key.rsplit('.', 1)[-1]}={value:g}" for key, value in record.axes.items() if key != "train.seed")


def evaluation(folder: RunFolder, step: int) -> dict[str, Any]:
    events = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return next(event for event in events if event["step"] == step and "eval/loss" in event)


def halve(folders: list[RunFolder]) -> dict[str, Any]:
    """Which trials go on at each rung, and what all of them train together."""
    left, tokens, rungs = dict.fromkeys(folders, 0), 0, []
    for share in (*RUNGS, 1.0):
        looks = {}
        for folder in left:
            steps = read_record(folder).plan["steps"]
            rung = rung_step(share, 0.2, steps["total_steps"], steps["warmup_steps"])
            looks[folder] = evaluation(folder, rung)
            tokens += looks[folder]["tokens"] - left[folder]
        ranked = sorted(looks, key=lambda folder: float(looks[folder]["eval/loss"]))
        rungs.append({cell(read_record(folder)): looks[folder]["eval/loss"] for folder in ranked})
        kept = ranked[: max(1, -(-len(left) // FACTOR))]
        left = {folder: looks[folder]["tokens"] for folder in kept}
    winner = read_record(next(iter(left)))
    return {"tokens": tokens, "rungs": rungs, "winner": cell(winner), "loss": winner.objective}


def main() -> None:
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    runs = []
    for seed in SEEDS:
        folders = train_grid(home, seed)
        losses = {cell(record): float(record.objective or "inf") for record in map(read_record, folders)}
        tokens = sum(int(read_record(folder).metrics["tokens"]) for folder in folders)
        best = min(losses, key=losses.__getitem__)
        runs.append({"seed": seed, "tokens": tokens, "losses": losses, "best": best, "halving": halve(folders)})
    common = statistics.mode(run["best"] for run in runs)
    noise = statistics.stdev(run["losses"][common] for run in runs)
    rows = [
        (run["seed"], run["best"], run["losses"][run["best"]], run["halving"]["winner"], run["halving"]["loss"],
         run["tokens"] / run["halving"]["tokens"])
        for run in runs
    ]  # fmt: skip
    print(table(["seed", "grid's best", "its loss", "halving's winner", "its loss", "fewer tokens (times)"], rows))
    print(f"between seeds the loss of {common} has a standard deviation of {noise:.4f}")
    write_result("halving", {"rungs": RUNGS, "reduction_factor": FACTOR, "runs": runs, "seed_noise": noise})


if __name__ == "__main__":
    main()
