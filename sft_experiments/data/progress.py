"""A progress bar for the preparation: on a terminal it moves, elsewhere nothing is printed."""

from collections.abc import Callable
from types import TracebackType
from typing import Optional

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

Tick = Callable[[int], None]  # called with the rows done since the last call


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
