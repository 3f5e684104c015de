"""Files that appear whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from sft_experiments.errors import RunFolderError


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
