"""What the fork server imports once. Freezing the garbage collector keeps the shared pages shared after the fork."""

import gc
import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional

# Ctrl-C at the terminal is for the sweep, which stops its trials in order. It was held back until here (start.py).
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

# Imported by peft where it is installed, it asks each GPU for its compute capability. That starts CUDA, which does not
# survive a fork. (What other packages may do is noticed in the child: start.py.)
STARTS_CUDA = "bitsandbytes"


class NotYet(MetaPathFinder, Loader):
    """Finds a package, so that it counts as installed, and refuses to import it."""

    def find_spec(self, fullname: str, path: Any, target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if fullname != STARTS_CUDA:
            return None
        sys.meta_path.remove(self)
        try:
            found = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        return None if found is None else ModuleSpec(fullname, self, origin=found.origin, is_package=True)

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        return None

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(f"{module.__name__} is imported after the fork")


@contextmanager
def without_what_starts_cuda() -> Iterator[None]:
    finder = NotYet()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


with without_what_starts_cuda():
    import sft_experiments.training.worker  # noqa: F401  imports torch, transformers, trl and our training room

gc.collect()
gc.freeze()
