"""A trial on several devices: one process (rank) for each, started and watched by torch.distributed.run.

Rank 0 writes the run folder. The others are the same worker with a folder of their own inside it, ``.ranks/N``, where
they leave their records; checkpoints, model and log are the trial's. When one rank ends badly the others are stopped,
and what counts is what the first of them died of.
"""

import re
import sys
import time
from typing import Optional

from sft_experiments.files import is_held
from sft_experiments.runs.folder import RunFolder, folder_of
from sft_experiments.runs.plan_file import find_plan

WORKER = "sft_experiments.training.worker"
STARTS = "starts {} ranks"
GRACE_SECONDS = 60  # for a checkpoint after SIGTERM, as long as the sweep gives; torch's default is half of it
ENVIRONMENT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS), "PYTHONUNBUFFERED": "1"}
ENDING_SECONDS = 10.0  # ranks see within a second that their launcher is gone, and go too
# What torch.distributed.run writes about the rank that failed first, and the line with which it begins to tell.
ROOT_CAUSE = re.compile(r"Root Cause \(first observed failure\):.*?rank *: (\d+).*?exitcode *: (-?\d+)", re.DOTALL)
TELLS = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic/", re.MULTILINE)


def num_ranks(folder: RunFolder) -> int:
    """How many processes train a run folder together, as it was planned."""
    plan = find_plan(folder)
    return plan.batch.num_devices if plan is not None else 1


def rank_command(folder: RunFolder, ranks: int) -> list[str]:
    """The command that trains a folder on so many devices of this machine, and a line in the log that says so."""
    folder.log.parent.mkdir(parents=True, exist_ok=True)
    with folder.log.open("a", encoding="utf-8") as log:
        print(STARTS.format(ranks), file=log)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, "-m", WORKER, str(folder.path)]


def first_failure(folder: RunFolder, ranks: int) -> Optional[tuple[int, int]]:
    """Rank and exit code (negative: a signal) of the rank that failed first in the last attempt; None when none did."""
    found = ROOT_CAUSE.search(last_attempt(folder, ranks))
    return (int(found.group(1)), int(found.group(2))) if found else None


def last_words(folder: RunFolder, ranks: int) -> str:
    """What the ranks of the last attempt printed, without what their launcher had to say about it."""
    return TELLS.split(last_attempt(folder, ranks), maxsplit=1)[0]


def last_attempt(folder: RunFolder, ranks: int) -> str:
    if not folder.log.is_file():
        return ""
    return folder.log.read_text(encoding="utf-8", errors="replace").rpartition(STARTS.format(ranks))[2]


def await_ranks(folder: RunFolder, ranks: int) -> None:
    """Ranks whose launcher was killed end by themselves; until then the folder is theirs."""
    deadline = time.monotonic() + ENDING_SECONDS
    while any(is_held(folder_of(folder, rank).lock) for rank in range(ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
