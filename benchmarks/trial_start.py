"""C9: how long until a trial's own process is ready to train: the sweep's fork server, a spawned one, a fresh command.

``python -m benchmarks.trial_start``. Ready means that the worker is imported and torch's threads are set. CPU seconds
of the new process so far and of this one; wall from the request. Gate: each process draws the same numbers from the
same seed. The fork server's own imports, once per sweep, are given apart. A local job of submitit, as Slurm users start
them, takes part where submitit is installed (``pip install 'sft-experiments[slurm]'``).
"""

import argparse
import importlib.util
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks.harness import Measurement, measure, table, write_result
from benchmarks.processes import REPOSITORY
from sft_experiments.launch.start import WarmStarter, worker_environment

CHILD = "--child"
TARGET_SECONDS, TARGET_TIMES = 0.1, 40.0
OURS, SUBMITIT = "warm starter", "submitit, local"
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


def start_by_submitit(folder: Path) -> Callable[[], tuple[float, float]]:
    """The job's own process is counted, the controller that submitit puts above it is not."""
    import submitit

    executor = submitit.AutoExecutor(folder, cluster="local")
    executor.update_parameters(timeout_min=5)

    def start() -> tuple[float, float]:
        own, requested = time.process_time(), time.perf_counter()
        job = executor.submit(ready, requested)
        return seconds(job.result(), time.process_time() - own)

    return start


def peers(folder: Path) -> dict[str, Callable[[], tuple[float, float]]]:
    """Those that are installed."""
    always = {"spawned process": start_by("spawn"), "fresh command": start_command}
    return always | ({SUBMITIT: start_by_submitit(folder)} if importlib.util.find_spec("submitit") else {})


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
    WarmStarter().prepare(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        starters = {OURS: start_by("forkserver"), **peers(Path(folder))}
        starters[OURS]()  # waits until the server has imported what it preloads
        measured = measure(starters, options.repeats, warmup=0)
    assert len(_probes) == 1, _probes
    report(options.repeats, measured, options.results)


def report(repeats: int, measured: dict[str, Measurement], results: Path | None) -> None:
    """Write the result and print the table."""
    cpu = {name: one.cpu_median for name, one in measured.items()}
    others = [name for name in cpu if name != OURS]
    used = psutil.Process(forkserver._forkserver._forkserver_pid).cpu_times()  # type: ignore[attr-defined]
    result = {
        "id": "C9",
        "repeats": repeats,
        "once_cpu_seconds": used.user + used.system,
        "cpu_seconds": cpu,
        "wall_seconds": {name: one.wall_median for name, one in measured.items()},
        "times": {name: cpu[name] / cpu[OURS] for name in others},
        "target_seconds": TARGET_SECONDS,
        "targets": dict.fromkeys(others, TARGET_TIMES),
        "runs": {name: one.as_dict() for name, one in measured.items()},
    }
    write_result("trial_start", result, results)
    rows = [(name, cpu[name], measured[name].wall_median, cpu[name] / cpu[OURS]) for name in measured]
    print(table(("start", "CPU s", "wall s", "times ours"), rows))
    print(f"the fork server's imports, once per sweep: {result['once_cpu_seconds']:.1f} CPU s")


if __name__ == "__main__":
    main()
