"""Plans made in a folder of the test's own."""

from pathlib import Path
from typing import Any

import pytest

from sft_experiments.plan.commands import _options as plan_options
from sft_experiments.plan.commands import as_dict, outlook


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own working folder and data cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))


def planned(*arguments: str) -> dict[str, Any]:
    """What ``sft plan --json`` prints for these arguments."""
    options, overrides = plan_options().parse_known_args(list(arguments))
    return as_dict(outlook(overrides, options))
