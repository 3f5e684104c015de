"""Start the ranks of one trial: `python -m sft_experiments.launch.rank_launcher NUM_RANKS RUN_FOLDER`.

It is torch.distributed.run, except that how the first rank to fail ended is written down as data, where torch only
prints it. Heavy: a process of its own runs this.
"""

import logging
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as run_ranks

from sft_experiments.launch.ranks import WORKER, RankFailure, write_failure
from sft_experiments.runs.folder import RunFolder


def main(arguments: list[str]) -> int:
    """Returns 0 when all ranks ended well, else 1 with the first failure in the run folder."""
    ranks, folder = arguments
    logging.disable(logging.ERROR)  # torch's account of it would stand in the log behind the last words of the rank
    try:
        run_ranks(["--standalone", f"--nproc-per-node={ranks}", "-m", WORKER, folder])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        write_failure(RunFolder(Path(folder)), RankFailure(int(rank), int(failure.exitcode)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
