"""What the fork server imports does not touch CUDA, which would not survive a fork."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Every Python function of torch.cuda that is called while something is imported. `_is_compiled` looks at torch's build.
WATCH = """
import sys
from importlib.machinery import PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Present
import torch
called = set()

def watch(frame, event, argument):
    code = frame.f_code
    if event == "call" and "/torch/cuda/" in code.co_filename and code.co_name.isidentifier():
        called.add(code.co_name)

sys.setprofile(watch)
import {module}
sys.setprofile(None)
print(sorted(called - {{"_is_compiled"}}))
"""


def called_while_importing(module: str, *absent: str) -> str:
    program = WATCH.format(module=module, absent=absent)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("absent", [(), ("bitsandbytes", "peft")])
def test_nothing_that_is_preloaded_calls_torch_cuda(absent: tuple[str, ...]) -> None:
    assert called_while_importing("sft_experiments.launch.preload", *absent) == "[]"


def test_a_package_that_does_would_be_seen() -> None:
    pytest.importorskip("bitsandbytes")
    assert "is_available" in called_while_importing("peft")


@pytest.mark.parametrize("module", ["launch.preload", "training.worker"])
def test_what_was_left_out_counts_as_installed_and_can_be_imported_afterwards(module: str) -> None:
    pytest.importorskip("bitsandbytes")
    program = f"""
import sft_experiments.{module}, sys
assert "bitsandbytes" not in sys.modules and "peft" in sys.modules
from peft.import_utils import is_bnb_available
from transformers.utils import is_bitsandbytes_available
assert is_bnb_available() and is_bitsandbytes_available()
from bitsandbytes.nn import Linear4bit
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
