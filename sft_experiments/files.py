"""Files that appear whole or not at all, their hashes, and locks between processes."""

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import DataError, RunFolderError


def write_text_atomically(path: Path, text: str) -> None:
    """Write to a temporary name beside ``path``, sync, rename: a killed process never leaves half a file.

    Raises ``RunFolderError`` when the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def _umask() -> int:
    """The permissions that this process withholds; the system tells only by setting them."""
    current = os.umask(0o022)
    os.umask(current)
    return current


def write_json_atomically(path: Path, content: Any) -> None:
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file that must be there; ``RunFolderError`` names the file and what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error


def json_lines(path: Path, last_bytes: Optional[int] = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, or of its last bytes; of no file: none.

    Lines that are no object are left out: a killed process leaves half a line, and so does a cut.
    """
    try:
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
            content = file.read().decode("utf-8", errors="replace")
    except OSError:
        return
    for line in content.split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def link_tree(source: Path, target: Path, without: tuple[str, ...] = ()) -> None:
    """The folder once more, whole or not at all: by hard links, which take no space, or as copies where there are none.

    ``without`` names what stays away. Raises ``RunFolderError``.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            half = Path(temporary) / target.name
            shutil.copytree(source, half, copy_function=_linked, ignore=shutil.ignore_patterns(*without))
            half.rename(target)
    except OSError as error:  # copytree's own holds a list of all that went wrong
        raise RunFolderError(f"{target} cannot be made of {source}: {error.strerror or error}") from error


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file for the length of the block. Raises ``RunFolderError`` at once when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{path.parent} is in use by another process: {what} is already running there"
            ) from None
        yield


def is_held(path: Path) -> bool:
    """Whether some process holds the lock right now."""
    if not path.exists():
        return False
    with path.open() as file:  # for reading: results may lie on a disk that cannot be written
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def source_hash(function: Callable[..., Any]) -> str:
    """The content of the file that a function stands in: what it does, as far as that file says it."""
    return sha256_of_file(Path(inspect.getfile(function)))


def sha256_of_file(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
