from collections.abc import Callable
from pathlib import Path

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.launch.retry import run_trial
from sft_experiments.launch.trial import plan_run
from sft_experiments.runs.folder import RunFolder

SMALL = [
    "model=tiny",
    "dataset=demo",
    "dataset.demo.num_train=200",
    "dataset.demo.num_validation=40",
    "logger=none",
    "train.max_steps=8",
    "compute.device=cpu",
    "compute.isolate=false",
    "compute.threads=1",
    "generation.num_samples=2",
    "generation.max_new_tokens=8",
]
Train = Callable[..., RunFolder]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a small run in this process and return its folder."""

    def train(*overrides: str) -> RunFolder:
        outputs = tmp_path_factory.mktemp("outputs")
        with composed([*SMALL, f"output_dir={outputs}", *overrides]) as composition:
            trial = plan_run(composition)
        run_trial(trial)
        return trial.folder

    return train


@pytest.fixture(scope="session")
def trained(train: Train) -> RunFolder:
    return train("name=whole")


@pytest.fixture(scope="session")
def adapter(train: Train) -> RunFolder:
    return train("name=adapter", "peft=lora", "train.learning_rate=0.05")


@pytest.fixture(scope="session")
def adapter_on_bf16(train: Train) -> RunFolder:
    return train("name=on_bf16", "peft=lora", "train.learning_rate=0.05", "train.precision=bf16")


@pytest.fixture
def messages_file(tmp_path: Path) -> Path:
    """Three conversations that no training saw."""
    path = tmp_path / "other.jsonl"
    row = '{{"messages": [{{"role": "user", "content": "{0}"}}, {{"role": "assistant", "content": "{1}"}}]}}\n'
    pairs = [("largest of 9 1 2", "9"), ("last letter of q w e", "e"), ("sort: 3 2 1", "1 2 3")]
    path.write_text("".join(row.format(*pair) for pair in pairs), encoding="utf-8")
    return path
