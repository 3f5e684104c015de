"""Sweeps of the real command inside the test's process, so that all of them share one warm starter, and with faults."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.commands import main
from sft_experiments.launch.start import WarmStarter
from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.plan_file import Plan, read_plan
from sft_experiments.runs.record import Record, read_record
from tests.conftest import SMALL_DEMO

FAULTS = Path(__file__).parent / "faults"
TINY = [*SMALL_DEMO, "logger=none", "compute.threads=1", "train.max_steps=6", "train.effective_batch_size=8"]
QUIET_RATES = "train.learning_rate=0.001,0.002,0.003"

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

    def by_rate(self) -> dict[float, Record]:
        return {record.config["train"]["learning_rate"]: record for record in self.records()}

    def trial(self, rate: float) -> RunFolder:
        (path,) = self.folder.glob(f"*{self.by_rate()[rate].trial_id}")
        return RunFolder(path)

    def plan(self, rate: float) -> Plan:
        return read_plan(self.trial(rate))

    def weights(self, rate: float) -> bytes:
        return (self.trial(rate).model / "model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def faulty_environment(tmp_path_factory: pytest.TempPathFactory, sft_environment: dict[str, str]) -> dict[str, str]:
    """The environment of workers into which faults can be planted; none are at first."""
    file = tmp_path_factory.mktemp("faults") / "faults.json"
    file.write_text("[]")
    return {**sft_environment, "PYTHONPATH": f"{FAULTS}:{Path(__file__).parents[2]}", "PLANTED_FAULTS": str(file)}


@pytest.fixture(scope="session")
def starter(faulty_environment: dict[str, str]) -> Iterator[None]:
    """One fork server for all sweeps of this session; one that an earlier test has started knows nothing of faults."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    before = dict(os.environ)
    os.environ.update(faulty_environment)
    WarmStarter().prepare(threads=1)
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


@pytest.fixture(scope="session")
def sweep_in(starter: None, faulty_environment: dict[str, str]) -> Callable[..., Done]:
    """``sweep_in(home, *overrides)``: the command as at the shell, but without the seconds of its imports."""

    def run(home: Path, *overrides: str) -> Done:
        with pytest.MonkeyPatch.context() as patch, StringIO() as shown:
            patch.chdir(home)
            for name in ("SFT_CACHE_DIR", "HF_HUB_OFFLINE", "COLUMNS"):
                patch.setenv(name, faulty_environment[name])
            with redirect_stdout(shown), redirect_stderr(shown):
                code = main(["train", "-m", *TINY, *overrides])
            return Done(code, shown.getvalue(), home)

    return run


@pytest.fixture
def sweep(sweep_in: Callable[..., Done], tmp_path: Path) -> Callable[..., Done]:
    """``sweep(*overrides)``: in this test's own folder."""
    return partial(sweep_in, tmp_path)


@pytest.fixture(scope="session")
def quiet(sweep_in: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The sweep that nothing happens to: what all others are compared with. Read it, do not change it."""
    done = sweep_in(tmp_path_factory.mktemp("quiet"), QUIET_RATES)
    assert done.code == 0, done.shown
    return done
