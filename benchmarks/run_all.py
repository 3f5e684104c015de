"""All CPU benchmarks one after another, and the table of what they found (`make bench`).

``--table`` prints the table of the results that are there. All of it takes about an hour and a half on two cores, a
third of that C6. LitGPT and Ray Tune take part when ``--litgpt`` and ``--ray`` name interpreters that have them
(``make bench BENCH="--litgpt litgpt/bin/python --ray ray/bin/python"``): they want environments of their own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import table

RESULTS = Path(__file__).parent / "results"
COMMANDS = {  # in the order they run
    "C1": ["start_up"],
    "C2": ["cold_run"],
    "C3": ["training_step", "--few"],
    "C4": ["data_preparation"],
    "C5": ["grid"],
    "C6": ["halving"],
    "C7": ["side_by_side"],
    "C8": ["checkpoints"],
    "C9": ["trial_start"],
}
PEERS = {"C3": "litgpt", "C6": "ray"}  # of which suite in an environment of its own
Row = tuple[str, str, float, str, bool]  # work, against, measured, target, met


def start_up(result: dict[str, Any]) -> Iterator[Row]:
    for command, target in result["targets"].items():
        seconds, times = result["cpu_seconds"][command], result["times"][command]
        yield command, "", seconds, f"<= {target} s", seconds <= target
        yield command, "trl sft --help", times, f">= {result['target_times']:g}x", times >= result["target_times"]


def cold_run(result: dict[str, Any]) -> Iterator[Row]:
    for case in result["cases"]:
        work = f"{case['steps']} steps, cold, {case['lengths']}"
        yield from times(work, case["times"], case["targets"])


def training_step(result: dict[str, Any]) -> Iterator[Row]:
    for case in result["cases"]:
        work = f"packed step, {case['size']} {case['dtype']}"
        same, best = case["times_same_settings"], case["times_best_peer"]
        yield work, "TRL, same settings", same, ">= 4x", same >= 4
        yield work, case["best_peer"], best, ">= 2x", best >= 2


def data_preparation(result: dict[str, Any]) -> Iterator[Row]:
    for name, case in result["cases"].items():
        yield from times(f"{result['rows']} chats, {name}", case["times"], dict.fromkeys(case["times"], case["target"]))


def grid(result: dict[str, Any]) -> Iterator[Row]:
    yield from times(f"{result['cells']} cells, {result['steps']} steps", result["times"], result["targets"])


def halving(result: dict[str, Any]) -> Iterator[Row]:
    """In the product's own order of the cells; each seed counts with the peer's tokens over ours."""

    def median(name: str) -> float:
        return statistics.median(run["contenders"][name]["own_order"]["times"] for run in result["runs"])

    within = all(run["contenders"]["ours, asha"]["worst_gap"] <= result["seed_noise"] for run in result["runs"])
    work, fewer = f"15 cells, tokens, winner {'within noise' if within else 'missed'}", median("ours, asha")
    yield work, "full grid", fewer, ">= 2.5x", within and fewer >= 2.5
    for peer in [name for name in result["runs"][0]["contenders"] if not name.startswith("ours")]:
        yield work, peer, fewer / median(peer), "> 1x", within and fewer > median(peer)
    for own in ("ours, halving", "ours, median"):
        yield f"{own.removeprefix('ours, ')} instead of asha", "full grid", median(own), "", True


def side_by_side(result: dict[str, Any]) -> Iterator[Row]:
    for name, share in result["of_ideal"].items():
        if "two at once" in name:
            target = result["target"] if name == "ours, two at once" else None
            yield name, "one after another", share, f">= {target}" if target else "", target is None or share >= target


def checkpoints(result: dict[str, Any]) -> Iterator[Row]:
    for peer, ratio in result["times"].items():
        for key, what in (("left", "bytes left"), ("most", "most bytes"), ("save_cpu_seconds", "CPU s of saving")):
            target = result["target"] if key == "left" else None
            yield (
                f"grid, {what}",
                peer,
                ratio[key],
                f">= {target:g}x" if target else "",
                not target or ratio[key] >= target,
            )


def trial_start(result: dict[str, Any]) -> Iterator[Row]:
    seconds, limit = result["cpu_seconds"]["warm starter"], result["target_seconds"]
    yield "isolated trial start", "", seconds, f"<= {limit} s", seconds <= limit
    yield from times("isolated trial start", result["times"], result["targets"])


def times(work: str, measured: dict[str, float], targets: dict[str, float]) -> Iterator[Row]:
    for peer, value in measured.items():
        yield work, peer, value, f">= {targets[peer]:g}x", value >= targets[peer]


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    reader.__name__: reader
    for reader in (
        start_up,
        cold_run,
        training_step,
        data_preparation,
        grid,
        halving,
        side_by_side,
        checkpoints,
        trial_start,
    )
}


def summary(folder: Path = RESULTS) -> str:
    """A Markdown table of every result in the folder."""
    rows = []
    for identity, (suite, *_) in COMMANDS.items():
        for file in sorted(folder.glob(f"{suite}*.json")):
            result = json.loads(file.read_text())
            for work, against, value, target, met in READERS[suite](result):
                rows.append((identity, work, against, value, target, ("met" if met else "missed") if target else ""))
    return table(("id", "work", "against", "measured", "target", ""), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print what is recorded, measure nothing")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    for peer in PEERS.values():
        parser.add_argument(f"--{peer}", metavar="PYTHON", help="an interpreter that has this peer")
    options = parser.parse_args()
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1"}
    for identity in [] if options.table else options.only:
        suite, *arguments = COMMANDS[identity]
        peer = PEERS.get(identity, "")
        if interpreter := getattr(options, peer, None):
            arguments += [f"--{peer}", interpreter]
        print(f"\n{identity}: {suite}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{suite}", *arguments], env=environment, check=True)
    print(f"\n{summary()}")


if __name__ == "__main__":
    main()
