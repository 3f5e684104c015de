"""`sft status`: the trials of a sweep as their folders tell, from any shell."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console

from sft_experiments.commands import Command
from sft_experiments.errors import RunFolderError
from sft_experiments.files import is_held
from sft_experiments.runs.folder import find_run_folders
from sft_experiments.sweep.board import LiveBoard

REFRESH_SECONDS = 5.0


def _add_status_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, help="a sweep's folder")
    parser.add_argument("--watch", action="store_true", help="print again every few seconds until no trial runs")


def _run_status(parsed: Namespace) -> int:
    """Print one row per trial. Raises ``RunFolderError`` when there is no run."""
    console = Console(highlight=False)
    while True:
        folders = find_run_folders(parsed.directory) if parsed.directory.is_dir() else []
        if not folders:
            raise RunFolderError(f"{parsed.directory} holds no run: no record.json at or below it")
        board = LiveBoard(folders, console)
        board.refresh()
        console.print(board.table())
        running = sum(is_held(folder.lock) for folder in folders)
        console.print(f"{running} running now")
        if not parsed.watch or not running:
            return 0
        time.sleep(REFRESH_SECONDS)


COMMANDS = {
    "status": Command(_run_status, _add_status_arguments),
}
