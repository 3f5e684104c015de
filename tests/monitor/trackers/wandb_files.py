"""Read W&B's offline files back with its own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WANDB = Path(sys.executable).parent / "wandb"


def run_folders(folder: Path) -> list[Path]:
    """One per attempt, oldest first."""
    return sorted(path for path in (folder / "wandb").glob("*run-*") if path.is_dir())


def records(run_folder: Path) -> list[dict[str, Any]]:
    """Everything that W&B has on disk for a run, as it would be uploaded."""
    done = subprocess.run([WANDB, "leet", "inspect", "--json", run_folder], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def summary(run_folder: Path) -> dict[str, Any]:
    """State, config, summary and names of a run."""
    command: list[str | Path] = [WANDB, "leet", "inspect", "--summary", "--json", run_folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    content = json.loads(done.stdout)
    assert isinstance(content, dict)
    return content


def history(run_folder: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(run_folder) if record["type"] == "history"]
