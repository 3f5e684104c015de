"""Real parts for the data room: settings from conf/, the demo tokenizer, small files with planted faults."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerFast

from sft_experiments.config.hydra import conf_dir
from sft_experiments.data.encode import Encoded, Encoder
from sft_experiments.data.formats import Conversation, RowFault
from sft_experiments.data.prepare import PreparedData, prepare_data
from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.schema import DatasetConfig

Settings = Callable[..., DatasetConfig]
Prepare = Callable[..., PreparedData]


def encoded(encoder: Encoder, conversation: Conversation) -> Encoded:
    """One row. Raises its ``RowFault`` if it has one."""
    (row,) = encoder.encode([conversation])
    if isinstance(row, RowFault):
        raise row
    return row


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_demo_tokenizer()


@pytest.fixture
def settings() -> Settings:
    """A dataset config with the defaults of conf/dataset and the given changes."""

    def build(**changes: Any) -> DatasetConfig:
        defaults = OmegaConf.load(conf_dir() / "dataset" / "base" / "source.yaml")
        changes = {"name": "test", "max_length": 128, **changes}
        merged = OmegaConf.merge(OmegaConf.structured(DatasetConfig), defaults, changes)
        config = OmegaConf.to_object(merged)
        assert isinstance(config, DatasetConfig)
        return config

    return build


@pytest.fixture
def prepare(settings: Settings, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Prepare:
    """Prepare data with a cache of the test's own."""

    def run(tokenizer: Any = tokenizer, **changes: Any) -> PreparedData:
        return prepare_data(settings(**changes), tokenizer, cache_dir=tmp_path / "cache", show_progress=False)

    return run


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines, return the path."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> str:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return write


def chat(*turns: str, roles: str = "ua") -> dict[str, Any]:
    """A row of turns: chat("hi", "hello") is one user and one assistant turn."""
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    cycle = (roles * len(turns))[: len(turns)]
    return {"messages": [{"role": names[r], "content": turn} for r, turn in zip(cycle, turns, strict=True)]}


def good_rows(count: int) -> list[dict[str, Any]]:
    """Distinct rows that break no rule."""
    return [chat(f"{number} + 1 =", str(number + 1)) for number in range(count)]
