"""Shared by all rooms: the real command line in a subprocess, and one small real sweep."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import pytest

from sft_experiments.plan import gpus
from tests.plan.fake_nvml import Card, Driver, install
from tests.real_model import real_model_folder

Sft = Callable[..., subprocess.CompletedProcess[str]]

# Fewer rows than the demo's default: the same code in a tenth of the time.
SMALL_DEMO = ["dataset.demo.num_train=280", "dataset.demo.num_validation=42", "generation.exact_match_rows=14"]
SWEEP_OF_FOUR = [
    *SMALL_DEMO,
    "train.learning_rate=2e-3,1e30",
    "train.effective_batch_size=16,32",
    "train.max_steps=12",
    "name=four",
]


def skip_unless_required(what_is_missing: str, variable: str) -> None:
    """Skip this test, loudly; where ``variable`` is set (continuous integration) fail instead."""
    pytest.fail(what_is_missing) if os.environ.get(variable) else pytest.skip(what_is_missing)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first: run side by side, a long one must not be left for the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, a pretrained chat model with a template of its own. Do not change it."""
    folder = real_model_folder()
    if not folder.is_dir():
        skip_unless_required("NO PRETRAINED MODEL WAS TRAINED: make real-model makes it", "SFT_REQUIRE_REAL_MODEL")
    return folder


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_interrupts() -> None:
    """A shell that starts the tests in the background has them, and all that they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sft_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No network, no keys, one thread, and a data cache of the session's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HF_", "SFT_"))}
    ours = {
        "HF_HUB_OFFLINE": "1",
        "SFT_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    return {**kept, **ours}


@pytest.fixture(scope="session")
def run_sft(sft_environment: dict[str, str]) -> Sft:
    """``run_sft(folder, *arguments)``: the real command in ``folder``; never raises for an exit code."""

    def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sft_experiments", *arguments]
        return subprocess.run(
            command, cwd=folder, env={**sft_environment, **environment}, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def sft(run_sft: Sft, tmp_path: Path) -> Sft:
    """The real command in this test's own folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_sft(tmp_path, *arguments, **environment)

    return run


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A machine with these cards until the end of the test."""

    def put_in(*found: Card, visible: Optional[str] = None, torch: str = "2.13.0+cu130") -> None:
        install(monkeypatch, Driver(list(found)) if found else None, visible, torch)

    yield put_in
    gpus._visible.cache_clear()


@pytest.fixture(scope="session")
def trained(run_sft: Sft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one small completed training with both loggers. Read it, do not change it."""
    home = tmp_path_factory.mktemp("trained")
    done = run_sft(home, "train", *SMALL_DEMO, "train.max_steps=60", "train.effective_batch_size=16", "name=small")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = home.rglob("record.json")
    (record.parent / "terminal.txt").write_text(done.stdout)
    return record.parent


@pytest.fixture(scope="session")
def swept(run_sft: Sft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a 2x2 sweep in which the cells with an absurd learning rate diverge. Read it, do not change it."""
    home = tmp_path_factory.mktemp("swept")
    done = run_sft(home, "train", "-m", *SWEEP_OF_FOUR)
    (sweep,) = home.rglob("sweep.json")
    (sweep.parent / "terminal.txt").write_text(done.stdout + done.stderr + f"exit code {done.returncode}")
    return sweep.parent
