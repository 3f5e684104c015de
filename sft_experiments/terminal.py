"""The one console that everything is shown on, with notes, warnings and progress. Plain text when it is no terminal."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import TracebackType
from typing import Any, Optional, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

PIPE_WIDTH = 160  # columns where the output is a file or a pipe; rich would cut tables to 80
# Commands and paths are for pasting: soft_wrap never breaks them over lines.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def show_notes(notes: list[str]) -> None:
    """What happened on the way; how to sync W&B is said with the other commands."""
    show_warnings([note for note in notes if "wandb sync" not in note])


def show_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        console.print(Text(f"  note: {warning}", style="yellow"))


Tick = Callable[[int], None]  # called with the rows done since the last call


class LastingStream:
    """A text stream that nobody may be reading any more: what cannot be shown is dropped, and the work goes on.

    `sft train | head` closes the pipe, a terminal that is closed leaves an error; the run's log has it all.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """What is buffered goes nowhere too, so that closing the stream succeeds. A full disk is an error as ever."""
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Standard output and error that survive their reader, and that show what their encoding lacks as a mark."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = map(LastingStream, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class Progress:
    """One line per step of the preparation, on stderr."""

    def __init__(self, show: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = RichProgress(*columns, console=console, disable=not (show and console.is_terminal))

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._bar.stop()

    def task(self, name: str, total: Optional[int] = None) -> Tick:
        """A new line; the returned function moves it."""
        if self._bar.disable:  # rich would still keep its record of speeds
            return lambda count: None
        task = self._bar.add_task(name, total=total)
        return lambda count: self._bar.advance(task, count)
