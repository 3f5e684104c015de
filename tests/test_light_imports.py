"""The light half starts fast because it imports nothing heavy: looked up in sys.modules of real processes."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets", "trl", "accelerate", "peft", "wandb", "pandas", "plotly"}
LIGHT = [
    "cli", "app", "schema", "errors", "compose", "show", "composition", "doctor", "run.launch", "run.trial",
    "plan.build", "plan.check", "plan.commands", "plan.display", "plan.recommend", "sweep.check_first",
    "sweep.grid", "sweep.pool", "sweep.board", "report.commands", "report.compare", "monitor.health",
    "monitor.metrics_file", "data.fingerprint", "data.report",
]  # fmt: skip


def heavy_after(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint('loaded:', *sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("loaded:", 1)[1].split())


def test_no_light_module_imports_a_heavy_package() -> None:
    program = "\n".join(f"import sft_experiments.{module}" for module in LIGHT)
    assert heavy_after(program) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--cfg", "job"], ["compare", "--help"], ["plan"], ["recommend"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    program = f"from sft_experiments.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert heavy_after(program) == set()
