"""A warm starter hands each trial a process that nothing has touched: no threads, no device, its own log."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ALLOCATOR = "jemalloc_bg_thd"  # of pyarrow: one thread that returns memory, made safe for a fork by jemalloc itself


def look_around(answer: str) -> None:
    """Runs in a child of the fork server."""
    import torch

    server = Path(f"/proc/{os.getppid()}")
    names = {(thread / "comm").read_text().strip() for thread in (server / "task").iterdir()}
    opened = [str(file.readlink()) for file in (server / "fd").iterdir()]
    found = {
        "threads of the server": sorted(names - {ALLOCATOR}),
        "own threads": len(list(Path("/proc/self/task").iterdir())),
        "cuda": torch.cuda.is_initialized(),
        "devices": [name for name in opened if "nvidia" in name],
        "preloaded": "trl.trainer.sft_trainer" in __import__("sys").modules,
        "waiting": os.environ["OMP_WAIT_POLICY"],
        "threads allowed": os.environ["OMP_NUM_THREADS"],
    }
    Path(answer).write_text(json.dumps(found))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_nothing_has_been_started_before_the_fork(starter: None, tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=look_around, args=(str(tmp_path / "seen"),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert json.loads((tmp_path / "seen").read_text()) == {
        "threads of the server": ["python"],
        "own threads": 1,
        "cuda": False,
        "devices": [],
        "preloaded": True,
        "waiting": "passive",
        "threads allowed": "1",
    }
