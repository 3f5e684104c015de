"""A warm starter hands each trial a process that nothing has touched: no threads, no device, its own log."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch

from sft_experiments.launch import start

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


def test_a_child_of_a_server_that_started_cuda_starts_afresh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever package did it. ``_is_in_bad_fork`` is what torch refuses to start CUDA by."""
    fresh: list[list[str]] = []
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(os, "setsid", lambda: None)
    monkeypatch.setattr(start, "_redirect_output", lambda log: None)

    def become(program: str, command: list[str], environment: dict[str, str]) -> None:
        assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-a"
        fresh.append(command)
        raise SystemExit

    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit):
        start._work(str(tmp_path), str(tmp_path / "log.txt"), 1, "GPU-a", 1, os.getpid())
    assert fresh == [[sys.executable, "-m", "sft_experiments.training.worker", str(tmp_path)]]
    assert "a fresh process" in capfd.readouterr().out


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
