"""Prepared data for the trainer: from the cache, or built once and shared by every trial of a sweep."""

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

import datasets
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.build import build_prepared
from sft_experiments.data.encode import read_table
from sft_experiments.data.formats import Prompt
from sft_experiments.data.report import DataReport, report_from_json
from sft_experiments.data.sources import SPLITS, pin_revisions
from sft_experiments.data.store import (
    PREPARATION_VERSION,
    CacheEntry,
    dataset_fingerprint,
    default_cache_dir,
    get_or_build,
    preparation_settings,
    remember_plan,
)
from sft_experiments.errors import DataError
from sft_experiments.schema import DatasetConfig, ModelConfig
from sft_experiments.values import hash_of


@dataclass(frozen=True)
class PreparedData:
    """What the trainer needs. Data sets are memory-mapped and hold int32 lists."""

    train: datasets.Dataset  # input_ids, labels (-100: not supervised), seq_lengths when packed
    validation: Optional[datasets.Dataset]  # never packed: one document per row
    test: Optional[datasets.Dataset]
    prompts: list[Prompt]  # validation prompts with their reference answers
    report: DataReport
    fingerprints: dict[str, str]  # split -> hash of the raw data; "tokenizer"; "prepared" (the cache key)


def prepare_data(
    dataset: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_dir: Optional[Path] = None,
    model: Optional[ModelConfig] = None,
    split_seed: int = 0,
    show_progress: bool = True,
) -> PreparedData:
    """Prepared data from the cache, or made once under a lock. ``model`` lets later plans find the report.

    Raises ``DataError`` with every reason at once when the gate refuses, ``ModelError`` when the tokenizer cannot
    render or mask, ``ConfigError`` for keys that do not fit together.
    """
    cache_dir = cache_dir or default_cache_dir()
    configured, dataset = dataset, pin_revisions(dataset)
    fingerprints = dataset_fingerprint(dataset)
    fingerprints["tokenizer"] = tokenizer_fingerprint(tokenizer)
    libraries = {name: version(name) for name in ("transformers", "tokenizers", "trl")}  # templates and twins
    settings = preparation_settings(dataset)
    key = hash_of([PREPARATION_VERSION, libraries, fingerprints, settings, split_seed])[:32]

    def build(folder: Path) -> None:
        build_prepared(folder, dataset, tokenizer, split_seed, key, show_progress)

    entry, was_cached = get_or_build(cache_dir, key, build)
    if model is not None:
        remember_plan(configured, model, cache_dir, key)
    return _open_entry(entry, was_cached, fingerprints | {"prepared": key})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides ids and text: vocabulary, merges, normaliser, special tokens, chat template."""
    fast = tokenizer.is_fast
    backend: Any = tokenizer.backend_tokenizer.to_str() if fast else sorted(tokenizer.get_vocab().items())
    return hash_of([backend, tokenizer.special_tokens_map, tokenizer.chat_template])


def _open_entry(entry: CacheEntry, was_cached: bool, fingerprints: dict[str, str]) -> PreparedData:
    tables = {split: read_table(entry.table(split)) for split in SPLITS}
    train = tables["train"]
    if train is None:
        raise DataError(f"{entry.path} is damaged: train.arrow is missing; delete the folder (sft cache --clear)")
    return PreparedData(
        train=train,
        validation=tables["validation"],
        test=tables["test"],
        prompts=[Prompt(**prompt) for prompt in json.loads(entry.prompts.read_text(encoding="utf-8"))],
        report=replace(report_from_json(entry.read_report()), cached=was_cached),
        fingerprints=fingerprints,
    )
