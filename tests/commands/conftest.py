"""Plans made in a folder of the test's own."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.commands import run


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own working folder and data cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))


def planned(*arguments: str) -> dict[str, Any]:
    """What ``sft plan --json`` prints for these arguments."""
    shown = StringIO()
    with redirect_stdout(shown):
        assert run("plan", [*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(shown.getvalue())
    return found
