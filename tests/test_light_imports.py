"""The light half starts fast because it imports nothing heavy: looked up in sys.modules of real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

import sft_experiments

HEAVY = {"torch", "transformers", "datasets", "trl", "accelerate", "peft", "wandb", "pandas", "plotly", "optuna"}
HEAVY_ROOMS = ("training", "sanity", "model_use", "sweep.search")
HEAVY_MODULES = {
    "data.encode", "data.prepare", "data.proof", "data.template",
    "monitor.measure", "monitor.session",
    "monitor.trackers.tensorboard_tracker", "monitor.trackers.wandb_tracker", "monitor.trackers.wandb_sweep",
    "monitor.trackers.trackio_tracker",
    "launch.preload", "launch.rank_launcher", "commands.check", "commands.schedules",
}  # fmt: skip


def light_modules() -> list[str]:
    """All but those named above: a new module is light until it says why not."""
    root = Path(sft_experiments.__file__).parent
    found = [".".join(file.relative_to(root).with_suffix("").parts) for file in sorted(root.rglob("*.py"))]
    found = [name.removesuffix(".__init__") for name in found if name not in {"__init__", "__main__"}]
    return [name for name in found if not name.startswith(HEAVY_ROOMS) and name not in HEAVY_MODULES]


def heavy_after(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint('loaded:', *sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("loaded:", 1)[1].split())


def test_no_light_module_imports_a_heavy_package() -> None:
    assert len(light_modules()) > 60
    assert heavy_after("\n".join(f"import sft_experiments.{module}" for module in light_modules())) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--cfg", "job"], ["compare", "--help"], ["plan"], ["recommend"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    program = f"from sft_experiments.commands import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert heavy_after(program) == set()
