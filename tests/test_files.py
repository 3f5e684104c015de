"""The lock of a folder: held by one process, and looked at without writing."""

from pathlib import Path

import pytest

from sft_experiments.errors import RunFolderError
from sft_experiments.files import hold, is_held


def test_a_lock_is_seen_while_it_is_held_and_held_once(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_held(path)
    with hold(path, "a test"):
        assert is_held(path)
        with pytest.raises(RunFolderError, match="is in use by another process: a test is already running there"):
            hold(path, "a test").__enter__()
    assert not is_held(path)


def test_looking_at_a_lock_needs_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    with hold(path, "a test"):
        pass
    modes: list[str] = []
    open_path = Path.open

    def noted(self: Path, mode: str = "r") -> object:
        modes.append(mode)
        return open_path(self, mode)

    monkeypatch.setattr(Path, "open", noted)  # root may write everywhere
    assert not is_held(path)
    assert modes == ["r"]
