"""The on-disk cache of prepared data: one folder per key, written whole under a lock, read memory-mapped.

``<cache>/prepared/<key>/`` holds ``train.arrow`` (and validation, test), ``prompts.json`` and ``report.json``.
Imports of pyarrow happen where tables are read, so that listing and planning stay light.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from sft_experiments.data.fingerprint import default_cache_dir, planning_key
from sft_experiments.errors import DataError
from sft_experiments.run.files import write_json_atomically
from sft_experiments.schema import DatasetConfig, ModelConfig

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


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
    from filelock import FileLock

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


def write_table(table: "pa.Table", file: Path) -> None:
    """The rows as an Arrow stream, the format that ``datasets`` memory-maps."""
    import pyarrow as pa

    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def read_table(file: Path) -> "Optional[datasets.Dataset]":
    """The memory-mapped rows, or None when the split does not exist."""
    import datasets

    return datasets.Dataset.from_file(str(file)) if file.exists() else None


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
