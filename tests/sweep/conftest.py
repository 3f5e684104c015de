"""Sweeps of the real command inside the test's process, so that all of them share one warm starter, and with faults."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.cli import main
from sft_experiments.run.folder import find_run_folders
from sft_experiments.run.record import Record, read_record
from sft_experiments.sweep.starter import warm_up
from tests.conftest import SMALL_DEMO

FAULTS = Path(__file__).parent / "faults"
TINY = [*SMALL_DEMO, "logger=none", "compute.threads=1", "train.max_steps=6", "train.effective_batch_size=8"]

Fault = dict[str, Any]


@dataclass
class Done:
    """What a sweep left."""

    code: int
    shown: str
    home: Path

    @property
    def folder(self) -> Path:
        (file,) = self.home.rglob("sweep.json")
        return file.parent

    def records(self) -> list[Record]:
        return [read_record(folder) for folder in find_run_folders(self.folder)]

    def by(self, axis: str) -> dict[Any, Record]:
        return {record.axes[axis]: record for record in self.records()}

    def by_rate(self) -> dict[float, Record]:
        return self.by("train.learning_rate")

    def weights(self, rate: float) -> bytes:
        trial = self.by_rate()[rate].trial_id
        (folder,) = self.folder.glob(f"*{trial}")
        return (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def faulty_environment(tmp_path_factory: pytest.TempPathFactory, sft_environment: dict[str, str]) -> dict[str, str]:
    """The environment of workers into which faults can be planted; none are at first."""
    file = tmp_path_factory.mktemp("faults") / "faults.json"
    file.write_text("[]")
    return {**sft_environment, "PYTHONPATH": str(FAULTS), "PLANTED_FAULTS": str(file)}


@pytest.fixture(scope="session")
def starter(faulty_environment: dict[str, str]) -> Iterator[None]:
    """One fork server for all sweeps of this session."""
    before = dict(os.environ)
    os.environ.update(faulty_environment)
    warm_up(threads=1)
    os.environ.clear()
    os.environ.update(before)
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def plant(faulty_environment: dict[str, str]) -> Iterator[Callable[..., None]]:
    """``plant(fault, ...)``: from now on these faults, and no others (see faults/sitecustomize.py)."""
    file = Path(faulty_environment["PLANTED_FAULTS"])

    def write(*faults: Fault) -> None:
        for marker in file.parent.glob(f"{file.name}.*"):
            marker.unlink()
        file.write_text(json.dumps(faults))

    write()
    yield write
    write()


@pytest.fixture
def sweep(
    starter: None,
    faulty_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    """``sweep(*overrides, command="sweep")``: the command as at the shell, but without the seconds of its imports."""
    monkeypatch.chdir(tmp_path)
    for name in ("SFT_CACHE_DIR", "HF_HUB_OFFLINE", "COLUMNS"):
        monkeypatch.setenv(name, faulty_environment[name])

    def run(*overrides: str) -> Done:
        code = main(["train", "-m", *TINY, *overrides])
        captured = capfd.readouterr()
        return Done(code, captured.out + captured.err, tmp_path)

    return run
