"""The wheel holds everything it needs and works from another folder than the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sft_experiments.config.hydra import conf_dir

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_config_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"sft_experiments/conf/{file.relative_to(conf_dir())}" for file in conf_dir().rglob("*.yaml")}
    templates = {str(file.relative_to(ROOT)) for file in (ROOT / "sft_experiments").rglob("*.j*") if file.is_file()}
    assert configs <= names
    assert templates <= names
    assert "hydra_plugins/sft_experiments/__init__.py" in names
    assert "hydra_plugins/__init__.py" not in names  # a namespace that other plugins share


def test_the_installed_wheel_composes_and_plans_a_sweep_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "SFT_CACHE_DIR": str(tmp_path / "cache")}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "sft_experiments", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "effective_batch_size: ${model.recommended.effective_batch_size}" in run("train", "--cfg", "job")
    shown = run("plan", "sweep=lr_x_batch")
    assert "9" in shown
    code = "import sft_experiments.config.hydra as c; print(c.conf_dir())"
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert where.stdout.strip() == str(site / "sft_experiments" / "conf")
