"""The on-disk cache of prepared data: one folder per key, written whole under a lock, read memory-mapped.

``<cache>/prepared/<key>/`` holds ``train.arrow`` (and validation, test), ``prompts.json`` and ``report.json``.
Imports of pyarrow happen where tables are read, so that listing and planning stay light.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

from filelock import FileLock

from sft_experiments.data.formats import format_of
from sft_experiments.data.read import resolve_files
from sft_experiments.data.sources import GENERATOR_VERSION, SPLITS, demo_arguments, sources_of
from sft_experiments.errors import DataError
from sft_experiments.files import sha256_of_file, write_json_atomically, write_text_atomically
from sft_experiments.schema import DatasetConfig, DataSource, ModelConfig, SourceConfig
from sft_experiments.values import hash_of, plain


@dataclass(frozen=True)
class CacheEntry:
    """One prepared data set. Exists when its report does: the folder is renamed into place complete."""

    path: Path

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def prompts(self) -> Path:
        return self.path / "prompts.json"

    def table(self, split: str) -> Path:
        return self.path / f"{split}.arrow"

    def read_report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
        return content

    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())

    def last_used(self) -> float:
        """Seconds since the epoch."""
        return self.report.stat().st_mtime


def prepared_folder(cache_dir: Path) -> Path:
    return cache_dir / "prepared"


def get_or_build(cache_dir: Path, key: str, build: Callable[[Path], None]) -> tuple[CacheEntry, bool]:
    """The entry for ``key`` and whether it was there already; else ``build`` fills a folder that then becomes it.

    One process builds, the others wait for its lock and read the result. Raises ``DataError`` when the cache folder
    cannot be written.
    """
    folder = prepared_folder(cache_dir)
    entry = CacheEntry(folder / key)
    if _is_usable(entry):
        return entry, True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            if _is_usable(entry):
                return entry, True
            _build_into(entry, build)
    except OSError as error:
        raise DataError(
            f"the cache {folder} cannot be written: {error.strerror or error}; set SFT_CACHE_DIR to another folder"
        ) from error
    return entry, False


def _is_usable(entry: CacheEntry) -> bool:
    try:
        entry.read_report()
        os.utime(entry.report)  # last used, for `sft cache`
    except (OSError, ValueError):  # not there, or damaged from outside: build it again
        return False
    return True


def _build_into(entry: CacheEntry, build: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=entry.path.parent, prefix=f".{entry.path.name[:8]}-"))
    try:
        build(temporary)
        shutil.rmtree(entry.path, ignore_errors=True)
        temporary.replace(entry.path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def list_entries(cache_dir: Optional[Path] = None) -> list[CacheEntry]:
    """All prepared data sets, the most recently used first."""
    folder = prepared_folder(cache_dir or default_cache_dir())
    entries = [CacheEntry(file.parent) for file in folder.glob("*/report.json") if not file.parent.name.startswith(".")]
    return sorted(entries, key=lambda entry: -entry.last_used())


def clear_cache(cache_dir: Optional[Path] = None) -> tuple[int, int]:
    """Delete every prepared data set; returns how many and their bytes. Runs that hold one open keep their map."""
    entries = list_entries(cache_dir)
    num_bytes = sum(entry.num_bytes() for entry in entries)
    for entry in entries:
        shutil.rmtree(entry.path)
    for leftover in prepared_folder(cache_dir or default_cache_dir()).glob("*.lock"):
        leftover.unlink(missing_ok=True)
    return len(entries), num_bytes


def remember_plan(dataset: DatasetConfig, model: ModelConfig, cache_dir: Path, key: str) -> None:
    """Let later plans of this data and model find the entry."""
    write_json_atomically(cache_dir / "plans" / f"{planning_key(dataset, model)}.json", {"key": key})


def cached_report(
    dataset: DatasetConfig, model: ModelConfig, cache_dir: Optional[Path] = None
) -> Optional[dict[str, Any]]:
    """The data report of the last preparation of this data for this model, or None. Light: for ``sft plan``."""
    cache_dir = cache_dir or default_cache_dir()
    try:
        pointer = json.loads((cache_dir / "plans" / f"{planning_key(dataset, model)}.json").read_text("utf-8"))
        return CacheEntry(prepared_folder(cache_dir) / pointer["key"]).read_report()
    except (OSError, ValueError):  # never prepared, or cleared since
        return None


PREPARATION_VERSION = 3  # raise it when the same input gives other rows, masks, packs or another report
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
        contents = [[_as_read(part, _split_content(part, dataset, split, memory)), part.weight] for part in parts]
        if any(content is not None for content, _ in contents):
            fingerprints[split] = hash_of(contents)
    return fingerprints


def _as_read(source: SourceConfig, content: Any) -> Any:
    """Content and the version of the code that reads it, where that is the user's own."""
    version = format_of(source).version
    return [content, version] if version and content is not None else content


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
