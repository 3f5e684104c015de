"""C9: how long until a trial's own process is ready to train: the sweep's fork server, a spawned one, a fresh command.

``python -m benchmarks.trial_start``. Ready means that the worker is imported and torch's threads are set. CPU seconds
of the new process so far and of this one; wall from the request. Gate: each process draws the same numbers from the
same seed. The fork server's own imports, once per sweep, are given apart.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks.harness import measure, table, write_result
from benchmarks.processes import REPOSITORY
from sft_experiments.run.launch import worker_environment
from sft_experiments.sweep.starter import warm_up

CHILD = "--child"
TARGET_SECONDS, TARGET_TIMES = 0.1, 40.0
OURS, PEERS = "warm starter", ("spawned process", "fresh command")
_probes: set[float] = set()


def ready(requested: float) -> dict[str, float]:
    """Runs in the new process: seconds so far, and a number that depends on the random state alone."""
    import torch

    import sft_experiments.training.worker  # noqa: F401

    torch.set_num_threads(1)
    seconds = {"cpu": time.process_time(), "wall": time.perf_counter() - requested}
    torch.manual_seed(0)
    return {**seconds, "probe": torch.randn(64, 64).matmul(torch.randn(64, 64)).sum().item()}


def send_ready(connection: Connection, requested: float) -> None:
    connection.send(ready(requested))


def start_by(method: str) -> Callable[[], tuple[float, float]]:
    def start() -> tuple[float, float]:
        context = multiprocessing.get_context(method)
        receiver, sender = context.Pipe(duplex=False)
        own, requested = time.process_time(), time.perf_counter()
        process = context.Process(target=send_ready, args=(sender, requested))  # type: ignore[attr-defined]
        process.start()
        own = time.process_time() - own
        answer = receiver.recv()
        process.join()
        return seconds(answer, own)

    return start


def start_command() -> tuple[float, float]:
    own, requested = time.process_time(), time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.trial_start", CHILD, str(requested)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=worker_environment(1), cwd=REPOSITORY)
    own = time.process_time() - own
    output, _ = process.communicate()
    return seconds(json.loads(output.splitlines()[-1]), own)


def seconds(answer: dict[str, float], own: float) -> tuple[float, float]:
    _probes.add(answer["probe"])
    return own + answer["cpu"], answer["wall"]


def main() -> None:
    if CHILD in sys.argv:
        print(json.dumps(ready(float(sys.argv[-1]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    warm_up(1)
    starters = {OURS: start_by("forkserver"), PEERS[0]: start_by("spawn"), PEERS[1]: start_command}
    starters[OURS]()  # waits until the server has imported what it preloads
    used = psutil.Process(forkserver._forkserver._forkserver_pid).cpu_times()  # type: ignore[attr-defined]
    measured = measure(starters, options.repeats, warmup=0)
    assert len(_probes) == 1, _probes
    cpu = {name: result.cpu_median for name, result in measured.items()}
    result = {
        "id": "C9",
        "repeats": options.repeats,
        "once_cpu_seconds": used.user + used.system,
        "cpu_seconds": cpu,
        "wall_seconds": {name: result.wall_median for name, result in measured.items()},
        "times": {name: cpu[name] / cpu[OURS] for name in PEERS},
        "target_seconds": TARGET_SECONDS,
        "targets": dict.fromkeys(PEERS, TARGET_TIMES),
        "runs": {name: result.as_dict() for name, result in measured.items()},
    }
    write_result("trial_start", result, options.results)
    rows = [(name, cpu[name], measured[name].wall_median, cpu[name] / cpu[OURS]) for name in starters]
    print(table(("start", "CPU s", "wall s", "times ours"), rows))
    print(f"the fork server's imports, once per sweep: {result['once_cpu_seconds']:.1f} CPU s")


if __name__ == "__main__":
    main()
