"""`sft plan` of searches: the points that a random one draws, and how far a Bayesian one is."""

import json
from pathlib import Path

import pytest

from sft_experiments.commands import run
from tests.commands.conftest import planned
from tests.conftest import SMALL_DEMO, Sft

pytestmark = pytest.mark.usefixtures("own_folder")

RATES = "train.learning_rate=tag(log,interval(1e-4,1e-2))"


def test_a_random_search_lists_the_points_that_it_will_draw() -> None:
    cells = planned("sweep=random", "sweep.num_trials=5", RATES)["cells"]
    assert len({cell["trial_id"] for cell in cells}) == 5
    assert {cell["state"] for cell in cells} == {"new"}
    assert all(1e-4 <= cell["axes"]["train.learning_rate"] <= 1e-2 for cell in cells)
    assert planned("sweep=random", "sweep.num_trials=7", RATES)["cells"][:5] == cells


def test_a_bayesian_search_shows_its_space_and_what_a_trial_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned("sweep=optuna", "sweep.num_trials=6", RATES, "train.max_steps=10")
    assert found["cells"] == []
    assert found["search"]["space"]["train.learning_rate"] == "1e-4 to 0.01 (log)"
    assert (found["search"]["num_trials"], found["search"]["left"]) == (6, 6)
    run("plan", ["sweep=optuna", "sweep.num_trials=6", RATES])
    shown = capsys.readouterr().out
    assert "Bayesian search, 6 trials in all" in shown
    assert "0 of 6 points proposed" in shown
    assert list(tmp_path.glob("outputs/*")) == []


@pytest.mark.slow
def test_a_search_under_way_shows_its_points_with_their_states_and_what_is_left(
    sft: Sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SMALL_DEMO, "sweep=optuna", "train.effective_batch_size=8,16", "train.max_steps=4", "logger=none"]
    wild = [*settings, "train.learning_rate=1e-3,1e30"]
    done = sft("sweep", *wild, "sweep.num_trials=5")
    assert "diverged" in done.stdout
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in tmp_path.rglob("*") if file.is_file()}
    shown = sft("plan", *wild, "sweep.num_trials=8")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(sft("plan", "--json", *wild, "sweep.num_trials=8").stdout)
    after = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before
    states = [cell["state"] for cell in found["cells"]]
    assert len(states) == 5
    assert set(states) == {"completed", "diverged"}
    assert found["search"]["left"] == 3
    assert found["device_seconds"] == pytest.approx(3 * found["search"]["trial_seconds"]["average"])
    (line,) = [line for line in shown.stdout.splitlines() if "5 of 8 points proposed" in line]
    assert all(f"{states.count(state)} {state}" in line for state in ("completed", "diverged"))
    full = json.loads(sft("plan", "--json", *wild, "sweep.num_trials=5").stdout)
    assert (full["search"]["left"], full["device_seconds"]) == (0, 0)
