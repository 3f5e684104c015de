"""Notice that training stands still: write where every thread is, and say so. A thread, since the trainer hangs."""

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path


class StallWatch:
    """Calls ``on_stall(silent seconds)`` once per silence: when no ``beat`` came for ``seconds``. None: never."""

    def __init__(self, seconds: float | None, on_stall: Callable[[float], None], stacks: Path) -> None:
        self._seconds = seconds
        self._on_stall = on_stall
        self._stacks = stacks
        self._last_beat = time.monotonic()
        self._told = False
        self._stop = threading.Event()

    def start(self) -> None:
        self.beat()
        if self._seconds is not None:
            threading.Thread(target=self._watch, args=(self._seconds,), name="stall-watch", daemon=True).start()

    def beat(self) -> None:
        """Something moved: an optimizer step, an evaluation, a saved checkpoint."""
        self._last_beat = time.monotonic()
        self._told = False

    def stop(self) -> None:
        self._stop.set()

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(min(1.0, seconds / 4)):
            silent = time.monotonic() - self._last_beat
            if silent > seconds and not self._told:
                self._told = True
                self._write_stacks(silent)
                self._on_stall(silent)

    def _write_stacks(self, silent: float) -> None:
        with self._stacks.open("a", encoding="utf-8") as file:
            file.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')}: no step for {silent:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
