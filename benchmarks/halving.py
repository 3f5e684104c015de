"""C6: what early stopping of bad trials saves on the embedded default, and whether it finds the grid's winner.

Run: python -m benchmarks.halving [FOLDER] [--ray PYTHON]. 15 cells, three seeds, the demo's whole training. Training is
deterministic, so each grid is trained once, in full, by the real command, and every scheduler's own code decides over
the recorded curves: our rules, Optuna's pruners through ask, report and should_prune, Ray Tune's ASHAScheduler in a
real tune run (PYTHON is an interpreter with ``ray[tune]``). All look where the run evaluates and start the cells in the
same orders: that of the product, and others drawn at random. One real ``sft sweep sweep=asha`` confirms the count and,
to the last digit, the winner's loss.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import table, write_result
from sft_experiments.plan.arithmetic import rung_step
from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.metrics import read_events
from sft_experiments.runs.plan_file import read_plan
from sft_experiments.runs.record import read_record
from sft_experiments.schema import EarlyStopping
from sft_experiments.sweep.stopping_rules import RULES, Standings

SEEDS = (42, 43, 44)
RATES = "train.learning_rate=0.0003,0.0008,0.002,0.005,0.01"  # beside the demo's batches of 4, 16 and 64
FIXED = ["logger=none", "generation.num_samples=0", "generation.exact_match_rows=0", "compute.threads=1"]
FACTOR = 4  # conf/sweep/none.yaml
OURS = {  # rungs as in conf/sweep
    "ours, asha": (EarlyStopping.asha, (0.2, 0.6)),
    "ours, halving": (EarlyStopping.halving, (0.2, 0.6)),
    "ours, median": (EarlyStopping.median, (0.2, 0.4, 0.6, 0.8)),
}
SLOTS = 2  # trials at a time
ORDERS, RAY_ORDERS = 21, 3  # the product's own first
RAY_FACTORS = {"Ray Tune ASHA": 4, "Ray Tune ASHA, factor 3": 3}  # its default, and the one that has our rungs


@dataclass(frozen=True)
class Curve:
    """What one cell measured in the full grid."""

    cell: str
    folder: RunFolder
    objective: float  # of the best checkpoint
    tokens: list[int]  # at each look, the end included
    losses: list[float]

    def look(self, share: float) -> int:
        """The index of the look where a rung is."""
        record = read_record(self.folder)
        steps = read_plan(self.folder).steps
        assert steps is not None
        evaluated = [event["step"] for event in looks(self.folder)]
        rung = rung_step(share, record.config["train"]["eval_steps"], steps.total_steps, steps.warmup_steps)
        return evaluated.index(rung)


@dataclass(frozen=True)
class Outcome:
    """What a scheduler trained, and what it found."""

    tokens: int
    winner: str
    loss: float


Curves = dict[str, Curve]
Scheduler = Callable[[Curves, list[str]], Outcome]


def sweep(home: Path, *arguments: str) -> list[RunFolder]:
    """The real command; what is in its folder already is used as it is."""
    name = next(item.removeprefix("name=") for item in arguments if item.startswith("name="))
    command = [sys.executable, "-m", "sft_experiments", "sweep", *arguments, RATES, *FIXED, "sweep.concurrent_trials=1"]
    subprocess.run(command, cwd=home, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, stdout=subprocess.DEVNULL)
    return find_run_folders(next((home / "outputs").glob(f"{name}-*")))


def looks(folder: RunFolder) -> list[dict[str, Any]]:
    """The evaluations of a run but the first, before training, in order; the one after it, of the best, left out."""
    events: dict[int, dict[str, Any]] = {}
    for event in read_events(folder.metrics):
        if event["step"] and "eval/loss" in event:
            events.setdefault(event["step"], event)
    return list(events.values())


def read_curve(folder: RunFolder) -> Curve:
    record, seen = read_record(folder), looks(folder)
    cell = " ".join(f"{key.rsplit('.', 1)[-1]}={value:g}" for key, value in record.axes.items() if key != "train.seed")
    assert record.objective is not None
    tokens = [*(event["tokens"] for event in seen[:-1]), record.metrics["tokens"]]
    return Curve(cell, folder, record.objective, tokens, [event["eval/loss"] for event in seen])


def ours(rule: EarlyStopping, shares: tuple[float, ...], slots: int = SLOTS) -> Scheduler:
    """The product's rule over recorded curves, trials taking as long as they read tokens."""

    def run(curves: Curves, order: list[str]) -> Outcome:
        places = {cell: [curves[cell].look(share) for share in shares] for cell in order}
        ends = {cell: [0, *(curves[cell].tokens[look] for look in (*places[cell], -1))] for cell in order}
        passed: dict[str, list[float]] = {cell: [] for cell in order}
        training: dict[str, int] = {}  # and when they get to their next rung
        completed: set[str] = set()
        now = tokens = 0
        while True:
            while len(training) < slots:
                cell = RULES[rule](Standings(passed, set(training), completed, len(shares), FACTOR))
                if cell is None:
                    break
                height = len(passed[cell])
                length = ends[cell][height + 1] - ends[cell][height]
                tokens, training[cell] = tokens + length, now + length
            if not training:
                return best_of(curves, completed, tokens)
            cell = min(training, key=training.__getitem__)
            now = training.pop(cell)
            if len(passed[cell]) == len(shares):
                completed.add(cell)
            else:
                passed[cell].append(curves[cell].losses[places[cell][len(passed[cell])]])

    return run


def best_of(curves: Curves, completed: set[str], tokens: int) -> Outcome:
    winner = min(completed, key=lambda cell: curves[cell].objective)
    return Outcome(tokens, winner, curves[winner].objective)


def from_looks(curves: Curves, reached: dict[str, int]) -> Outcome:
    """An outcome from how many looks each cell got."""
    tokens = sum(curves[cell].tokens[count - 1] for cell, count in reached.items())
    return best_of(curves, {cell for cell, count in reached.items() if count == len(curves[cell].tokens)}, tokens)


def optuna_pruner(name: str) -> Scheduler:
    """A pruner with its defaults, asked after each look; one trial after another, as ``study.optimize`` does."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def run(curves: Curves, order: list[str]) -> Outcome:
        study, reached = optuna.create_study(pruner=getattr(optuna.pruners, name)()), {}
        for cell in order:
            trial = study.ask()
            for look, loss in enumerate(curves[cell].losses, start=1):
                trial.report(loss, look)
                reached[cell] = look
                if trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, loss)
        return from_looks(curves, reached)

    return run


def ray_outcomes(python: str, curves: Curves, orders: list[list[str]], factor: float) -> tuple[list[Outcome], str]:
    losses = {cell: curve.losses for cell, curve in curves.items()}
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({"curves": losses, "orders": orders, "slots": SLOTS, "reduction_factor": factor}))
        script = str(Path(__file__).parent / "ray_asha.py")
        quiet = {**os.environ, "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run([python, script, str(job)], env=quiet, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return [from_looks(curves, reached) for reached in found["looks"]], found["version"]


def orders_of(curves: Curves, seed: int) -> list[list[str]]:
    """The order of the product (by id), then random ones."""
    own = sorted(curves, key=lambda cell: read_record(curves[cell].folder).trial_id)
    return [own, *(random.Random(seed * 1000 + number).sample(own, len(own)) for number in range(1, ORDERS))]


def early_bias(curves: Curves) -> dict[str, Any]:
    """How the order at each look differs from the final one: places too good (+) or too bad (-) by learning rate."""
    final = sorted(curves, key=lambda cell: curves[cell].objective)
    found: dict[str, Any] = {}
    for look in range(len(curves[final[0]].losses) - 1):
        early = sorted(curves, key=lambda cell: curves[cell].losses[look])
        shift: dict[str, list[int]] = {}
        for cell in curves:
            shift.setdefault(cell.split()[0], []).append(final.index(cell) - early.index(cell))
        flattered = {rate: round(statistics.mean(places), 2) for rate, places in sorted(shift.items())}
        found[f"look {look + 1}"] = {"winner's rank": early.index(final[0]) + 1, "places flattered": flattered}
    return found


def run_seed(home: Path, seed: int, ray_python: str | None) -> dict[str, Any]:
    curves = {curve.cell: curve for curve in map(read_curve, sweep(home, f"train.seed={seed}", f"name=grid-{seed}"))}
    orders = orders_of(curves, seed)
    contenders = {name: ours(*settings) for name, settings in OURS.items()}
    contenders |= {f"Optuna {name}": optuna_pruner(name) for name in ("MedianPruner", "SuccessiveHalvingPruner")}
    outcomes = {name: [work(curves, order) for order in orders] for name, work in contenders.items()}
    version = None
    for name, factor in RAY_FACTORS.items() if ray_python else ():
        outcomes[name], version = ray_outcomes(ray_python, curves, orders[:RAY_ORDERS], factor)
    best = min(curves.values(), key=lambda curve: curve.objective)
    grid_tokens = sum(curve.tokens[-1] for curve in curves.values())
    return {
        "seed": seed,
        "tokens": grid_tokens,
        "best": best.cell,
        "losses": {cell: curve.objective for cell, curve in curves.items()},
        "early_bias": early_bias(curves),
        "ray": version,
        "contenders": {name: summary(found, grid_tokens, best.objective) for name, found in outcomes.items()},
    }


def summary(found: list[Outcome], grid_tokens: int, best: float) -> dict[str, Any]:
    """Of one seed over all orders: how many times fewer tokens than the grid, and how much worse the winners."""
    fewer = [grid_tokens / outcome.tokens for outcome in found]
    return {
        "own_order": {"tokens": found[0].tokens, "times": fewer[0], "winner": found[0].winner},
        "times": {"median": statistics.median(fewer), "least": min(fewer), "most": max(fewer)},
        "worst_gap": max(outcome.loss - best for outcome in found),
    }


def confirm(home: Path, seed: int) -> dict[str, Any]:
    """A real sweep with asha, its tokens from its records, beside the replay of one trial at a time."""
    apart = home / "confirmed"  # below the same outputs/ it would find the grid's trials complete
    apart.mkdir(exist_ok=True)
    folders = sweep(apart, f"train.seed={seed}", f"name=asha-{seed}", "sweep=asha")
    records = [read_record(folder) for folder in folders]
    curves = {curve.cell: curve for curve in map(read_curve, sweep(home, f"train.seed={seed}", f"name=grid-{seed}"))}
    predicted = ours(*OURS["ours, asha"], slots=1)(curves, orders_of(curves, seed)[0])
    return {
        "seed": seed,
        "tokens": sum(int(record.metrics["tokens"]) for record in records),
        "predicted_tokens": predicted.tokens,
        "loss": min(float(record.objective) for record in records if record.objective is not None),
        "predicted_loss": predicted.loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where the grids are, or are trained (an hour on one core)"
    )
    parser.add_argument("--ray", metavar="PYTHON", help='an interpreter with Ray Tune: pip install "ray[tune]"')
    options = parser.parse_args()
    home = options.folder or Path(tempfile.mkdtemp())
    runs = [run_seed(home, seed, options.ray) for seed in SEEDS]
    real = confirm(home, SEEDS[0])
    common = statistics.mode(run["best"] for run in runs)
    noise = statistics.stdev(run["losses"][common] for run in runs)
    rows = []
    for name in runs[0]["contenders"]:
        found = [run["contenders"][name] for run in runs]
        times = [[one["own_order"]["times"], one["times"]["median"], one["times"]["least"]] for one in found]
        rows.append((name, *map(statistics.median, zip(*times, strict=True)), max(one["worst_gap"] for one in found)))
    print(
        table(["scheduler", "fewer tokens, own order", "median order", "worst order", "winner worse by at most"], rows)
    )
    if not options.ray:
        print("Ray Tune: not installed (--ray PYTHON)")
    print(f"between seeds the loss of {common} has a standard deviation of {noise:.4f}")
    print(f"one real sweep: {real}")
    settings = {"reduction_factor": FACTOR, "orders": ORDERS, "ray_orders": RAY_ORDERS, "slots": SLOTS}
    write_result("halving", {**settings, "runs": runs, "real_sweep": real, "seed_noise": noise})


if __name__ == "__main__":
    main()
