"""One process per folder: an advisory lock that the kernel releases when its holder dies, however it dies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_experiments.errors import RunFolderError


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
