"""C2: a run of 20 steps from a cold process: `sft train`, `trl sft`, and a plain TRL script doing the same run.

``python -m benchmarks.cold_run``. All three start an interpreter, load the same tiny model and the same chats, train
with the same settings, evaluate once and save; ours also checks every row, proves every mask and restores the best
checkpoint. Gate: the same training loss at every step. A CPU second counts whoever else uses the machine.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import measure, table, write_result
from benchmarks.processes import run
from benchmarks.world import (
    LENGTHS,
    Job,
    build_world,
    check_same_losses,
    our_losses,
    our_run,
    peer_losses,
    script_run,
    trl_run,
)

CONTENDERS = {"sft train": our_run, "plain TRL script": script_run, "trl sft": trl_run}
TARGETS = {"trl sft": 3.0, "plain TRL script": 2.0}


def run_case(root: Path, lengths: str, job: Job, repeats: int) -> dict[str, Any]:
    world = build_world(root / "world", lengths)
    outputs: dict[str, Path] = {}

    def contender(name: str) -> tuple[float, float]:
        folder = root / f"{name.replace(' ', '_')}-{len(list(root.iterdir()))}"
        outputs[name] = folder / "out"
        return run(CONTENDERS[name](world, job, outputs[name]), folder, **world.environment)

    measured = measure({name: lambda name=name: contender(name) for name in CONTENDERS}, repeats, warmup=0)
    (ours,) = our_losses(outputs["sft train"]).values()
    gate = {name: check_same_losses(ours, peer_losses(outputs[name])) for name in TARGETS}
    cpu = {name: result.cpu_median for name, result in measured.items()}
    return {
        "lengths": lengths,
        "steps": job.steps,
        "batch": job.batch,
        "largest_loss_difference": gate,
        "cpu_seconds": cpu,
        "wall_seconds": {name: result.wall_median for name, result in measured.items()},
        "times": {name: cpu[name] / cpu["sft train"] for name in TARGETS},
        "targets": TARGETS,
        "runs": {name: result.as_dict() for name, result in measured.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Job.steps)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    cases = []
    for lengths in options.lengths:
        with tempfile.TemporaryDirectory() as folder:
            cases.append(run_case(Path(folder), lengths, Job(options.steps), options.repeats))
        write_result("cold_run", {"id": "C2", "repeats": options.repeats, "cases": cases}, options.results)
    rows = [
        (case["lengths"], name, case["cpu_seconds"][name], case["wall_seconds"][name], case["times"].get(name, 1.0))
        for case in cases
        for name in CONTENDERS
    ]
    print(table(("rows", "contender", "CPU s", "wall s", "times ours"), rows))


if __name__ == "__main__":
    main()
