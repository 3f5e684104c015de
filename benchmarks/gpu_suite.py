"""The GPU suite: `sft train` and `sft sweep` as users get them, full and LoRA, against stock TRL, in one run.

``python -m benchmarks.gpu_suite`` (`make bench-gpu`) wants a GPU and takes less than --seconds, 520 by default: what
does not fit in is listed as skipped. Models have random weights and chats are generated, so nothing is downloaded.
--model FOLDER adds two sweeps of a pretrained model (`make real-model` makes one). With more than one GPU it also
trains a trial on each and one on two. ``--table`` prints the recorded result as Markdown. ``--toy`` runs all of it on
the CPU with toy models; its numbers mean nothing and are kept nowhere, unless --results names a folder.

Ours are commands in processes of their own (benchmarks/gpu_product.py), TRL trains in this one. Tokens are real ones,
without padding. Gates: TRL's loss for the same rows, in the grid at every step of every cell. Targets are for one
H200-class GPU.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pynvml
import torch

from benchmarks.gpu_parts import NO_TIME, PARTS, Budget, Suite, attempt, release
from benchmarks.gpu_table import markdown
from benchmarks.harness import write_result

RESULTS = Path(__file__).parent / "results"


def software() -> dict[str, str]:
    """What decides which kernels run, beside what every result holds."""
    packages = ("flash-attn", "triton", "bitsandbytes", "tokenizers")
    return {"driver": driver(), "cuda": torch.version.cuda or "none", **{name: installed(name) for name in packages}}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def driver() -> str:
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return f"unknown ({error})"


def failures(found: Any) -> Iterator[str]:
    """Every text in a result that says so."""
    if isinstance(found, str) and found.startswith("failed"):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from failures(value)


def measure(suite: Suite, parts: list[str], folder: Path) -> dict[str, Any]:
    """Run the parts and write the result after each, so that nothing is lost."""
    device = "toy run, not a result" if suite.toy else torch.cuda.get_device_name()
    result: dict[str, Any] = {"toy": suite.toy, "device": device, "num_cards": suite.cards, "software": software()}
    for part in parts:
        one, began = PARTS[part], suite.budget.left()
        release(suite.device)
        result[one.key] = attempt(partial(one.work, suite)) if began > one.reserve else NO_TIME
        result.setdefault("part_seconds", {})[part] = round(began - suite.budget.left(), 1)
        file = write_result("gpu_suite_toy" if suite.toy else "gpu_suite", result, folder)
        print(f"{part}: {suite.budget.left():.0f} s left", flush=True)
    return read(file)


def read(file: Path) -> dict[str, Any]:
    """A result that was written; ``SystemExit`` where there is none."""
    if not file.is_file():
        raise SystemExit(f"no GPU has run the suite yet: there is no {file}")
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="toy models on the CPU: does the suite run?")
    parser.add_argument("--seconds", type=float, default=520.0, help="wall time for all of it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a pretrained model, for two sweeps more")
    parser.add_argument("--results", type=Path, help="another folder for the result")
    parser.add_argument("--table", action="store_true", help="print what is recorded, measure nothing")
    options = parser.parse_args()
    if options.table:
        print(markdown(read((options.results or RESULTS) / "gpu_suite.json")))
        return
    if not options.toy and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; `--toy` runs the suite on the CPU")
    with tempfile.TemporaryDirectory() as root:
        suite = Suite(options.toy, Path(root), Budget(options.seconds), options.model)
        folder = options.results or (suite.root if options.toy else RESULTS)
        result = measure(suite, options.parts, folder)
    print(markdown(result))
    if broken := list(failures(result)):
        raise SystemExit("\n".join(broken))


if __name__ == "__main__":
    main()
