"""A trial on several devices: one process (rank) for each, started and watched by torch.distributed.run.

Rank 0 writes the run folder. The others are the same worker with a folder of their own inside it, ``.ranks/N``, where
they leave their records; checkpoints, model and log are the trial's. When one rank ends badly the others are stopped,
and what counts is what the first of them died of.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from sft_experiments.errors import RunFolderError
from sft_experiments.files import is_held, read_json, write_json_atomically
from sft_experiments.runs.folder import RANKS, RunFolder, folder_of
from sft_experiments.runs.plan_file import find_plan

WORKER = "sft_experiments.training.worker"  # the module that trains one run folder
LAUNCHER = "sft_experiments.launch.rank_launcher"
STARTS = "starts {} ranks"
GRACE_SECONDS = 60  # for a checkpoint after SIGTERM, as long as the sweep gives; torch's default is half of it
ENVIRONMENT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS), "PYTHONUNBUFFERED": "1"}
ENDING_SECONDS = 10.0  # ranks see within a second that their launcher is gone, and go too


@dataclass(frozen=True)
class RankFailure:
    """The rank that failed first, and how its process ended."""

    rank: int
    exit_code: int  # negative: a signal


def num_ranks(folder: RunFolder) -> int:
    """How many processes train a run folder together, as it was planned."""
    plan = find_plan(folder)
    return plan.batch.num_devices if plan is not None else 1


def rank_command(folder: RunFolder, ranks: int) -> list[str]:
    """The command that trains a folder on so many devices of this machine, and a line in the log that says so."""
    folder.log.parent.mkdir(parents=True, exist_ok=True)
    _failure_file(folder).unlink(missing_ok=True)
    with folder.log.open("a", encoding="utf-8") as log:
        print(STARTS.format(ranks), file=log)
    return [sys.executable, "-m", LAUNCHER, str(ranks), str(folder.path)]


def write_failure(folder: RunFolder, failure: RankFailure) -> None:
    """Leave for ``first_failure`` what the ranks' launcher has seen."""
    write_json_atomically(_failure_file(folder), asdict(failure))


def first_failure(folder: RunFolder) -> Optional[RankFailure]:
    """The rank that failed first in the last attempt; None when none did, or when their launcher died itself."""
    try:
        return RankFailure(**read_json(_failure_file(folder)))
    except (RunFolderError, TypeError):
        return None


def _failure_file(folder: RunFolder) -> Path:
    return folder.path / RANKS / "failure.json"


def last_words(folder: RunFolder, ranks: int) -> str:
    """What the ranks of the last attempt printed."""
    if not folder.log.is_file():
        return ""
    return folder.log.read_text(encoding="utf-8", errors="replace").rpartition(STARTS.format(ranks))[2]


def await_ranks(folder: RunFolder, ranks: int) -> None:
    """Ranks whose launcher was killed end by themselves; until then the folder is theirs."""
    deadline = time.monotonic() + ENDING_SECONDS
    while any(is_held(folder_of(folder, rank).lock) for rank in range(ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
