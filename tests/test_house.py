"""The house: imports run downward only, the way to training is short, and an import inside a function says why.

The floors are data: the block in docs/architecture.md, which people read too.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sft_experiments.commands import main

PACKAGE = Path(__file__).parents[1] / "sft_experiments"
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
FILES = sorted(file for file in PACKAGE.rglob("*.py"))
MOST_LATE_IMPORTS = 45
MOST_FILES = 45
ONE_RUN = ["compute.isolate=false", "compute.device=cpu", "dataset.demo.num_train=200", "logger=tensorboard"]


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top down, as docs/architecture.md lists them."""
    (block,) = re.findall(r"```floors\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    return [line.split() for line in block.splitlines()]


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of the file, wherever it stands: each name with its module's."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: relative"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def imports_of_ours(file: Path) -> Iterator[tuple[ast.stmt, Path]]:
    for node, name in imports(file):
        parts = name.split(".")
        while parts[0] == PACKAGE.name and len(parts) > 1:
            path = PACKAGE.joinpath(*parts[1:])
            found = [one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()]
            if found:
                yield node, found[0]
                break
            parts.pop()


def late_imports(file: Path) -> set[int]:
    """The lines of imports inside functions."""
    functions = [
        n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    inner = [node for function in functions for node in ast.walk(function)]
    return {node.lineno for node in inner if isinstance(node, (ast.Import, ast.ImportFrom))}


def test_every_room_has_its_floor() -> None:
    listed = [room for floor in floors() for room in floor]
    assert sorted(listed) == sorted({room_of(file) for file in FILES} - {"__init__", "__main__"})


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downward_only(file: Path) -> None:
    """Imports inside functions and for types only are held to it too; there are no exceptions."""
    height = {room: -number for number, floor in enumerate(floors()) for room in floor}
    own = room_of(file)
    if own == "__main__":
        return
    for node, other in imports_of_ours(file):
        room = room_of(other)
        if room not in {own, "__init__"}:
            assert height[room] < height[own], f"{file.name}:{node.lineno}: {own} imports {room}"


def test_no_file_imports_itself_on_a_detour() -> None:
    below = {file: {other for _, other in imports_of_ours(file) if other.name != "__init__.py"} for file in FILES}
    reached = {file: set(others) for file, others in below.items()}
    for _ in FILES:
        reached = {file: others.union(*(reached[other] for other in others)) for file, others in reached.items()}
    assert [str(file) for file, others in reached.items() if file in others] == []


def test_a_late_import_says_what_it_saves() -> None:
    total = 0
    for file in FILES:
        lines = file.read_text().splitlines()
        for number in late_imports(file):
            total += 1
            assert "slow" in lines[number - 1] or "slow" in lines[number - 2], f"{file}:{number}: {lines[number - 1]}"
    assert total <= MOST_LATE_IMPORTS


def test_no_two_files_share_a_name() -> None:
    names = Counter(file.name for file in FILES if file.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_hydra_is_known_to_one_module_and_its_mistakes_to_another() -> None:
    knows = {
        str(file.relative_to(PACKAGE)) for file in FILES for _, name in imports(file) if name.split(".")[0] == "hydra"
    }
    assert knows == {"config/hydra.py", "config/mistakes.py"}


def test_the_fork_server_imports_what_its_children_need() -> None:
    """Nothing else tells of a preload without effect: each trial would only start many seconds later."""
    assert PACKAGE / "training" / "worker.py" in {
        file for _, file in imports_of_ours(PACKAGE / "launch" / "preload.py")
    }


class Arrived(BaseException):
    """The trainer trains."""


@pytest.mark.slow
def test_the_way_to_training_passes_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `sft train` to ``trainer.train()`` with an empty cache; whatever runs at import does not count."""
    from transformers import Trainer

    import sft_experiments.training  # noqa: F401

    def arrive(self: Any, *arguments: Any, **options: Any) -> None:
        raise Arrived

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(Trainer, "train", arrive)
    passed: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<") and code.co_flags & CO_OPTIMIZED:  # no class body
            passed.add(code.co_filename)

    sys.setprofile(note)
    try:
        with pytest.raises(Arrived):
            main(
                [
                    "train",
                    "compute.isolate=false",
                    "compute.device=cpu",
                    "dataset.demo.num_train=200",
                    "logger=tensorboard",
                ]
            )
    finally:
        sys.setprofile(None)
    ours = {file for file in passed if file and Path(file).is_relative_to(PACKAGE)}
    assert len(ours) <= MOST_FILES, sorted(ours)
