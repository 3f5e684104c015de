"""C1: how soon the command line answers: help, the composed config, the plan of a 3x3 grid; against `trl sft --help`.

``python -m benchmarks.start_up``. A cold process each, files in the page cache. Gate: each prints what it is for.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.harness import measure, table, write_result
from benchmarks.processes import run, sft, trl

COMMANDS = {  # name: command, a text that it must print, the target in CPU seconds
    "sft --help": (sft("--help"), "sweep", 0.3),
    "sft train --cfg job": (sft("train", "--cfg", "job"), "learning_rate:", 0.6),
    "sft plan of 9 cells": (sft("sweep", "--dry-run"), "9", 0.6),
    "trl sft --help": (trl("sft", "--help"), "--learning_rate", None),
}
PEER, TIMES = "trl sft --help", 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        roots = {name: Path(folder) / str(index) for index, name in enumerate(COMMANDS)}
        works = {name: (lambda name=name: run(COMMANDS[name][0], roots[name], COLUMNS="160")) for name in COMMANDS}
        measured = measure(works, options.repeats)
        for name, (_, text, _) in COMMANDS.items():
            assert text in (roots[name] / "output-0.txt").read_text(), name
    cpu = {name: result.cpu_median for name, result in measured.items()}
    result = {
        "id": "C1",
        "repeats": options.repeats,
        "cpu_seconds": cpu,
        "wall_seconds": {name: result.wall_median for name, result in measured.items()},
        "times": {name: cpu[PEER] / seconds for name, seconds in cpu.items()},
        "targets": {name: target for name, (_, _, target) in COMMANDS.items() if target},
        "target_times": TIMES,
        "runs": {name: result.as_dict() for name, result in measured.items()},
    }
    write_result("start_up", result, options.results)
    rows = [
        (name, cpu[name], measured[name].wall_median, target or "", cpu[PEER] / cpu[name])
        for name, (_, _, target) in COMMANDS.items()
    ]
    print(table(("command", "CPU s", "wall s", "target, CPU s", "times faster than trl"), rows))


if __name__ == "__main__":
    main()
