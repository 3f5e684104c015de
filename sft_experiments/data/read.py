"""Files to raw rows: JSON Lines, JSON, Parquet, CSV and Arrow, each row with the place it stands at.

A file that is missing, empty or not UTF-8 is refused at once (``DataError``); a broken line is one faulty row, so that
the gate can count them.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union

from sft_experiments.data.formats import Origin, RowFault
from sft_experiments.errors import DataError

RawRow = tuple[Origin, Union[dict[str, Any], RowFault]]


def resolve_files(patterns: list[str], key: str) -> list[Path]:
    """Files for paths and glob patterns, in the order given (matches of one pattern sorted).

    Raises ``DataError`` naming ``key`` and the pattern that matches nothing, a folder, or a format we cannot read.
    """
    files: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not matches:
            raise DataError(f"{key}: {pattern} does not exist (looked in {Path.cwd()})")
        files.extend(matches)
    for file in files:
        if file.is_dir():
            raise DataError(f"{key}: {file} is a folder; name its files, e.g. {file}/*.jsonl")
        if suffix_of(file) not in READERS:
            raise DataError(f"{key}: {file} has no known ending; allowed: {', '.join(READERS)}, each also with .gz")
    return files


def suffix_of(file: Path) -> str:
    """The ending that decides the format, without ``.gz``."""
    return Path(file.stem).suffix.lower() if file.suffix == ".gz" else file.suffix.lower()


def read_rows(file: Path) -> Iterator[RawRow]:
    """Rows of one file. Raises ``DataError`` when it cannot be read at all or holds no row."""
    empty = True
    try:
        for row in READERS[suffix_of(file)](file):
            empty = False
            yield row
    except OSError as error:  # pyarrow's errors for broken files are OSErrors too
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if empty:
        raise DataError(f"{file} is empty: no rows")


def _open(file: Path) -> io.BufferedIOBase:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _decode(raw: bytes, file: Path, start: int) -> str:
    """UTF-8 text of bytes that begin at byte ``start`` of the file, without a byte order mark."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        raise DataError(f"{file} is not UTF-8: byte {offset} (0x{raw[error.start]:02x}); convert it first") from error
    return text.removeprefix("\ufeff") if start == 0 else text


def _read_jsonl(file: Path) -> Iterator[RawRow]:
    with _open(file) as stream:
        start = 0
        for number, raw in enumerate(stream, start=1):
            text = _decode(raw, file, start)
            start += len(raw)
            if text.strip():
                yield Origin(str(file), number), _parse_line(text)


def _parse_line(text: str) -> Union[dict[str, Any], RowFault]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested a thousand deep
        cut = "the last line is cut: " if not text.endswith("\n") else ""
        return RowFault("unreadable_row", f"{cut}not JSON: {error}")
    return _require_object(value)


def _require_object(value: Any) -> Union[dict[str, Any], RowFault]:
    if isinstance(value, dict):
        return value
    return RowFault("unreadable_row", f"a row must be an object, this is {type(value).__name__} {str(value)[:40]!r}")


def _read_json(file: Path) -> Iterator[RawRow]:
    """A list of objects; JSON Lines under this ending are accepted too, as they are common."""
    with _open(file) as stream:
        text = _decode(stream.read(), file, 0)
    try:
        rows = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            yield from _read_jsonl(file)
            return
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} must hold a list of objects, not {type(rows).__name__}")
    for number, value in enumerate(rows, start=1):
        yield Origin(str(file), number), _require_object(value)


def _read_csv(file: Path) -> Iterator[RawRow]:
    with _open(file) as stream:
        text = _decode(stream.read(), file, 0)
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1):
        if None in row or None in row.values():
            yield Origin(str(file), number), RowFault("unreadable_row", "number of fields differs from the header's")
        else:
            yield Origin(str(file), number), row


def _read_parquet(file: Path) -> Iterator[RawRow]:
    from pyarrow.lib import ArrowInvalid  # slow: pyarrow, 0.2 s, only for its own formats
    from pyarrow.parquet import ParquetFile  # slow: pyarrow, 0.2 s, only for its own formats

    try:
        batches = ParquetFile(file).iter_batches(batch_size=1000)
        yield from _number(file, batches)
    except ArrowInvalid as error:
        raise DataError(f"{file} is not Parquet: {error}") from error


def _read_arrow(file: Path) -> Iterator[RawRow]:
    """The stream format that ``datasets`` writes, or the Arrow file (Feather 2) format."""
    import pyarrow as pa  # slow: pyarrow, 0.2 s, only for its own formats

    with pa.memory_map(str(file)) as source:
        try:
            reader = pa.ipc.open_stream(source)
            batches: Any = iter(reader)
        except pa.ArrowInvalid:
            try:
                archive = pa.ipc.open_file(source)
            except pa.ArrowInvalid as error:
                raise DataError(f"{file} is not Arrow: {error}") from error
            batches = (archive.get_batch(index) for index in range(archive.num_record_batches))
        yield from _number(file, batches)


def _number(file: Path, batches: Any) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield Origin(str(file), number), row


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
