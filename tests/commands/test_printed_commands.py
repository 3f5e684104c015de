"""Every command that is printed can be pasted: it composes, finds what is finished, and means the run that it names.

The sweeps are planned and recorded for real; only the training is left out, and its scores are made up.
"""

import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from sft_experiments.commands import run
from sft_experiments.config.hydra import composed
from sft_experiments.launch.trial import Trial
from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.record import Status, read_record
from sft_experiments.sweep.planning import plan_sweep
from tests.conftest import SMALL_DEMO

MINE = "defaults:\n  - linear\nwarmup_ratio: 0.2\n"
SWEEPS = {
    "the shipped grid": ["sweep=lr_x_batch"],
    "typed values": ["train.learning_rate=1e-3,2e-3,5e-3", "train.effective_batch_size=8,16"],
    "an added key": ["train.learning_rate=1e-3,2e-3", "+train.extra.neftune_noise_alpha=1,5"],
    "a zipped axis": ["train={learning_rate: 1e-3, max_steps: 4},{learning_rate: 2e-3, max_steps: 8}"],
    "a group": ["peft=none,lora", "train.learning_rate=1e-3,2e-3"],
    "options of one's own": ["--config-dir", "../mine", "scheduler=own", "train.learning_rate=1e-3,2e-3"],
    "an experiment of one's own": ["--config-dir", "../mine", "experiment=e", "train.learning_rate=1e-3,2e-3"],
    "seeds": ["train.learning_rate=1e-3,2e-3", "sweep.num_seeds=2"],
    "a random search": ["sweep=random", "sweep.num_trials=4"],
    "early stopping": ["sweep=asha"],
    "another place": ["output_dir=results/today", "train.learning_rate=1e-3,2e-3"],
    "a named folder": ["hydra.sweep.dir=named/it", "train.learning_rate=1e-3,2e-3"],
    "words with signs": [
        "name='it is, a=b'",
        "dataset.system_prompt='Don\\'t, x=1: {y}'",
        "train.learning_rate=1e-3,2e-3",
    ],
    "warmup in steps": ["train.max_steps=20", "scheduler.warmup_steps=15", "train.learning_rate=1e-3,2e-3"],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, in which we are, beside one with options of the user's."""
    for group, name, text in (
        ("scheduler", "own", MINE),
        ("experiment", "e", "# @package _global_\npeft:\n  r: 8\ndefaults:\n  - override /peft: lora\n"),
    ):
        (tmp_path / "mine" / group).mkdir(parents=True)
        (tmp_path / "mine" / group / f"{name}.yaml").write_text(text)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "project"


def finish(trial: Trial, score: float, weights: bool) -> None:
    """As a worker leaves it."""
    trial.write()
    record = read_record(trial.folder)
    record.start({})
    record.complete(score)
    record.metrics = {"eval/loss": score, "tokens": 1000}
    record.write(trial.folder)
    if weights:
        trial.folder.model.mkdir()
        (trial.folder.model / "config.json").write_text("{}")


def swept(*settings: str) -> list[Trial]:
    """A finished sweep whose score falls from cell to cell."""
    with composed(["-m", *SMALL_DEMO, "logger=none", *settings]) as composer:
        planner, cells = plan_sweep(composer)
    planner.sweep.write()
    for number, trial in enumerate(cells.values()):
        finish(trial, 1 / (number + 1), weights=number % 2 == 0)
    return list(cells.values())


def said(*arguments: str) -> str:
    shown = StringIO()
    with redirect_stdout(shown):
        assert run(arguments[0], list(arguments[1:])) == 0
    return shown.getvalue()


def printed(text: str) -> list[str]:
    """The commands that stand in a text of the terminal."""
    return re.findall(r"^(?:    |\w[\w ]*: )((?:cd \S+ && )?sft .*)$", text, re.MULTILINE)


def dry(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """State by trial id of what the command would run."""
    words = shlex.split(command)
    with monkeypatch.context() as there:
        if words[0] == "cd":
            there.chdir(words[1])
            words = words[3:]
        assert words[0] == "sft"
        if words[1] == "export":
            assert RunFolder(Path(words[2])).has_weights, command
            return {}
        found = json.loads(said(*words[1:], "--dry-run", "--json"))
    return {cell["trial_id"]: cell["state"] for cell in found["cells"]}


HERE, ELSEWHERE, RENAMED = "where it ran", "another folder", "a renamed sweep"
TOLD = [
    *((name, HERE) for name in SWEEPS),
    *((name, place) for name in ("options of one's own", "a named folder") for place in (ELSEWHERE, RENAMED)),
]


@pytest.mark.parametrize(("name", "place"), TOLD)
def test_what_is_printed_after_a_sweep_finds_its_cells(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    settings = SWEEPS[name]
    trials = swept(*settings)
    folder = trials[0].folder.path.parent.resolve()
    if place == RENAMED:
        folder = folder.rename(folder.with_name("renamed"))
    elif place == ELSEWHERE:
        monkeypatch.chdir(home.parent)
    text = said("compare", str(folder)) + said("best", str(folder))
    commands = printed(text)
    assert len(commands) >= 3, text
    ids = {trial.id for trial in trials}
    is_lost = place == RENAMED and name == "a named folder"  # it is below no output_dir
    for command in commands:
        states = dry(command, monkeypatch)
        if " -m " in command or "sft sweep" in command:
            assert "Extend" not in text or ("finished cells are kept" in text) is not is_lost
            kept = {one for one, state in states.items() if state == "completed"}
            assert is_lost or (kept and kept <= ids), command
            assert is_lost or "num_seeds" in command or kept == ids or "random" in str(settings), command
        elif "--from" not in command and states:
            assert set(states) <= ids, command


def test_a_trial_is_complete_whatever_the_sweep_that_asks_for_it(home: Path) -> None:
    first = swept("train.learning_rate=1e-3,2e-3", "name=first")
    for settings in (
        ["train.learning_rate=1e-3,2e-3", "name=second"],
        ["train.learning_rate=1e-3,2e-3", "train.effective_batch_size=16,32"],
        ["train.learning_rate=1e-3,2e-3", f"output_dir={home}/outputs"],
    ):
        with composed(["-m", *SMALL_DEMO, "logger=none", *settings]) as composer:
            again = plan_sweep(composer)[1].values()
        done = {trial.id for trial in again if trial.recorded()}
        assert done == {trial.id for trial in first}, settings
    with composed(
        ["-m", *SMALL_DEMO, "logger=none", "train.learning_rate=1e-3,2e-3", "name=x", "rerun=true"]
    ) as composer:
        assert not any(trial.recorded() for trial in plan_sweep(composer)[1].values())


def test_what_is_taken_over_stands_in_the_new_sweep_with_its_result_and_where_it_is_from(home: Path) -> None:
    (first,) = swept("train.learning_rate=1e-3", "name=first")
    (first.folder.checkpoints / "checkpoint-1").mkdir(parents=True)
    with composed(["-m", *SMALL_DEMO, "logger=none", "train.learning_rate=1e-3", "name=second"]) as composer:
        (trial,) = plan_sweep(composer)[1].values()
    trial.take_over()
    trial.take_over()
    record = read_record(trial.folder)
    assert (record.status, record.objective, record.name) == (Status.completed, 1.0, "second")
    assert str(first.folder.path) in record.notes[-1] and len(record.notes) == 1
    assert trial.folder.has_weights and not trial.folder.checkpoints.exists()
    assert read_record(first.folder).name == "first"
    assert len(find_run_folders(home)) == 2


def test_a_run_by_itself_is_not_taken_from_a_sweep_that_dropped_its_weights(home: Path) -> None:
    trials = swept("train.learning_rate=1e-3,2e-3")
    for trial in trials:
        states = dry(str(trial.record.command), pytest.MonkeyPatch())
        assert states == {trial.id: "completed" if trial.folder.has_weights else "new"}


def test_a_record_that_cannot_be_read_elsewhere_hinders_nobody(home: Path) -> None:
    (first,) = swept("train.learning_rate=1e-3", "name=first")
    first.folder.record.write_text("{")
    with composed(["-m", *SMALL_DEMO, "logger=none", "train.learning_rate=1e-3", "name=second"]) as composer:
        (trial,) = plan_sweep(composer)[1].values()
    assert trial.elsewhere is None


def test_changes_of_a_recorded_run_may_overrule_what_was_typed_then(home: Path) -> None:
    (first,) = swept("train.learning_rate=1e-3", "train.num_train_epochs=2", "scheduler.warmup_ratio=0.2")
    (changed,) = dry(
        f"sft train --from '{first.folder.path}' train.max_steps=3 scheduler.warmup_steps=1", pytest.MonkeyPatch()
    )
    assert changed != first.id
    with redirect_stderr(StringIO()) as told, pytest.raises(Exception, match="num_train_epochs: nothing reads it"):
        run("train", ["--from", str(first.folder.path), "train.max_steps=3", "train.num_train_epochs=1", "--dry-run"])
    assert not told.getvalue()
