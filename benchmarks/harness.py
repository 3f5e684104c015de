"""Side-by-side measurement: contenders take turns in one process, so that a busy machine slows all of them alike.

Every result carries the versions, the machine and its load, because a number without them cannot be compared.
"""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "hydra-core", "optuna", "submitit")


@dataclass(frozen=True)
class Measurement:
    """All runs of one contender: CPU seconds of this process and its finished children, and wall seconds."""

    name: str
    cpu: list[float]
    wall: list[float]
    extra: dict[str, Any] = field(default_factory=dict)  # e.g. {"tokens": 4096}

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    @property
    def wall_median(self) -> float:
        return statistics.median(self.wall)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "cpu_median": self.cpu_median, "wall_median": self.wall_median}


def measure(contenders: dict[str, Callable[[], Any]], repeats: int = 5, warmup: int = 1) -> dict[str, Measurement]:
    """Call every contender once per round, ``warmup`` rounds unmeasured, then ``repeats`` measured ones.

    A contender with a preparation that must not count times itself and returns its (CPU, wall) seconds.
    """
    results = {name: Measurement(name, [], []) for name in contenders}
    for round_number in range(warmup + repeats):
        for name, work in contenders.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            own = work()
            cpu, wall = own if isinstance(own, tuple) else (cpu_seconds() - cpu, time.perf_counter() - wall)
            if round_number >= warmup:
                results[name].cpu.append(cpu)
                results[name].wall.append(wall)
    return results


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def environment(extra_packages: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, machine, cores and load: what a reader needs to compare with their own run."""
    return {
        "python": platform.python_version(),
        "versions": {name: found for name in (*PACKAGES, *extra_packages) if (found := _version(name))},
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1_5_15": list(os.getloadavg()),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats with three significant digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [list(headers), ["---"] * len(headers), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_result(name: str, result: dict[str, Any], folder: Path | None = None) -> Path:
    """``benchmarks/results/<name>.json``: the result with its environment at the end of the run."""
    path = (folder or Path(__file__).parent / "results") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": name, "environment": environment(), **result}, indent=1) + "\n")
    return path
