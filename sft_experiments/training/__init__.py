"""From a run folder to a trained model: what only a worker and the checks before it need, and so heavy to import.

transformers imports peft where it is installed, and peft imports bitsandbytes. That takes a third of a worker's start,
and it asks each GPU for its compute capability, which starts CUDA: a fork does not survive that. So bitsandbytes is
left out here, once, for all the modules of this room; who loads quantised weights imports it then, as always.
(What other packages may do before a fork is noticed in the child: launch/start.py.)
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional

QUANTIZES = "bitsandbytes"


class NotYet(MetaPathFinder, Loader):
    """Finds a package, so that it counts as installed, and refuses to import it."""

    def find_spec(self, fullname: str, path: Any, target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if fullname != QUANTIZES:
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
        raise ImportError(f"{module.__name__} is imported where it is needed")


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    finder = NotYet()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


with without_bitsandbytes():
    import transformers.trainer_callback  # noqa: F401  imports peft
