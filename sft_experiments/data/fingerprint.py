"""Content hashes of data: what a trial's identity and the cache of prepared data hang on. Imports nothing heavy."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Optional

from sft_experiments.data.demo import GENERATOR_VERSION
from sft_experiments.data.read import resolve_files
from sft_experiments.data.sources import SPLITS, demo_arguments, sources_of
from sft_experiments.errors import DataError
from sft_experiments.run.files import write_text_atomically
from sft_experiments.schema import DatasetConfig, DataSource, ModelConfig, SourceConfig

PREPARATION_VERSION = 2  # raise it when the same input gives other rows, masks, packs or another report

# Fields that do not decide the prepared rows: labels, paths (their content is hashed) and the parts of a mixture.
_NOT_SETTINGS = {"name", "verifiable_answers", "train_files", "validation_files", "test_files", "mixture", "demo"}


def default_cache_dir() -> Path:
    """$SFT_CACHE_DIR, or ~/.cache/sft_experiments."""
    return Path(os.environ.get("SFT_CACHE_DIR") or "~/.cache/sft_experiments").expanduser()


def dataset_fingerprint(dataset: DatasetConfig, memory: Optional["HashMemory"] = None) -> dict[str, str]:
    """Split -> hash of what its rows are read from; only splits that exist. Paths do not matter, content does.

    ``memory`` spares reading a file again whose path, inode, size and modification time are unchanged: good enough for
    plans. Without it every byte is read, as the preparation does. Raises ``DataError`` for a missing file.
    """
    parts = sources_of(dataset)
    fingerprints = {}
    for split in SPLITS:
        contents = [[_split_content(part, dataset, split, memory), part.weight] for part in parts]
        if any(content is not None for content, _ in contents):
            fingerprints[split] = hash_of(contents)
    return fingerprints


def _split_content(source: SourceConfig, dataset: DatasetConfig, split: str, memory: Optional["HashMemory"]) -> Any:
    """What identifies the raw rows of one source and split, or None when it has no such split."""
    if source.source is DataSource.demo:
        return None if split == "test" else ["demo", GENERATOR_VERSION, split, demo_arguments(dataset)]
    if source.source is DataSource.hub:
        name = getattr(source, f"{split}_split")
        return ["hub", source.hub_id, source.hub_config, source.hub_revision, name] if name else None
    files = resolve_files(getattr(source, f"{split}_files"), f"dataset.{split}_files")
    return [memory.sha256(file) if memory else sha256_of_file(file) for file in files] or None


def preparation_settings(dataset: DatasetConfig) -> list[dict[str, Any]]:
    """Every setting that decides the prepared rows, of the data set and of the parts of a mixture."""
    sources: list[SourceConfig] = [dataset, *(part for part in sources_of(dataset) if part is not dataset)]
    return [
        {field.name: plain(getattr(source, field.name)) for field in fields(source) if field.name not in _NOT_SETTINGS}
        for source in sources
    ]


def planning_key(dataset: DatasetConfig, model: ModelConfig) -> str:
    """Names the latest preparation of this data for this model config, so that a plan can find its report.

    The tokenizer's files are not read: a plan may be stale where the preparation itself never is.
    """
    memory = HashMemory(default_cache_dir())
    tokenizer = [model.name, model.revision, model.tokenizer, model.chat_template]
    content = [dataset_fingerprint(dataset, memory), preparation_settings(dataset), tokenizer]
    return hash_of([PREPARATION_VERSION, *content])


def hash_of(content: Any) -> str:
    """SHA-256 of content as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Enums as their values, containers as JSON has them."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def sha256_of_file(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


class HashMemory:
    """File hashes remembered between commands in ``<cache>/file_hashes.json``."""

    def __init__(self, cache_dir: Path) -> None:
        self._path = cache_dir / "file_hashes.json"
        try:
            self._known: dict[str, list[Any]] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # absent, or damaged: it is only a memory
            self._known = {}

    def sha256(self, file: Path) -> str:
        """The file's content hash, read only when something about the file changed."""
        name = str(file.resolve())
        status = file.stat()
        state = [status.st_ino, status.st_size, status.st_mtime_ns]
        known = self._known.get(name)
        if known and known[:3] == state:
            return str(known[3])
        digest = sha256_of_file(file)
        self._known[name] = [*state, digest]
        write_text_atomically(self._path, json.dumps(self._known))
        return digest


def count_rows(dataset: DatasetConfig) -> Optional[int]:
    """Training rows where counting is cheap (the demo; JSON Lines by line breaks), before the gate; else None."""
    count = 0
    for source in sources_of(dataset):
        if source.source is DataSource.demo:
            count += demo_arguments(dataset)["num_train"]
        elif source.source is DataSource.files:
            for file in resolve_files(source.train_files, "dataset.train_files"):
                if file.suffix.lower() not in {".jsonl", ".ndjson"}:
                    return None
                count += sum(1 for line in file.open("rb") if line.strip())
        else:
            return None
    return min(count, dataset.max_train_rows or count)
