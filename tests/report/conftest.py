import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic run folders need not survive a power cut: a thousand of them are written in one second, not in ten."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
