"""Modules of the user's own add to the registers; one that cannot be imported is a mistake in a setting."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.config.load import load_plugins, to_config
from sft_experiments.config.validate import check_config
from sft_experiments.data.formats import FORMATS, Message, Origin, read_conversation
from sft_experiments.data.store import dataset_fingerprint
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import plan_run
from sft_experiments.monitor.trackers.register import TRACKERS, check_names
from sft_experiments.plan.arithmetic import SCHEDULES
from sft_experiments.runs.folder import find_run_folders
from sft_experiments.runs.metrics import METRICS, objectives, read_events
from sft_experiments.runs.record import read_record
from tests.conftest import Sft

TRACKER = """
from sft_experiments.monitor.trackers import register

class Lines:
    name = "lines"

    def __init__(self, file):
        self.file, self.notes = file, []

    def start(self, identity, settings):
        self.file.write_text(identity.trial_id)

    def log(self, event): ...
    def alert(self, alert): ...
    def samples(self, samples): ...
    def finish(self, status, summary):
        self.file.write_text(self.file.read_text() + " " + status)

    def abandon(self): ...

register.add("lines", lambda config, folder: Lines(folder.path / "lines.txt"))
"""
METRIC = """
from sft_experiments.runs import metrics

metrics.add(metrics.Metric("eval/brier", "Brier score", metrics.Direction.minimize, is_objective=True))
"""

FORMAT = """
from sft_experiments.data.formats import Conversation, Format, add, column_of


def read(row, source, origin):
    asked, said = column_of(row, source, "question"), column_of(row, source, "answer")
    return Conversation([{"role": "user", "content": asked}, {"role": "assistant", "content": said}], origin)


add(Format("quiz", read, ("question", "answer")))
"""

SCHEDULE = """
from math import cos, pi
from sft_experiments.plan.arithmetic import add_schedule


def waves(step, warmup_steps, total_steps, bumps=2):
    if step < warmup_steps:
        return step / warmup_steps
    return 0.55 + 0.45 * cos(2 * pi * bumps * (step - warmup_steps) / (total_steps - warmup_steps))


add_schedule("waves", waves)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose modules are forgotten again, with what they added to the registers."""
    monkeypatch.chdir(tmp_path)
    path, trackers, metrics, known = [*sys.path], dict(TRACKERS), dict(METRICS), set(sys.modules)
    formats, schedules = dict(FORMATS), dict(SCHEDULES)
    yield tmp_path
    sys.path[:] = path
    TRACKERS.clear()
    TRACKERS.update(trackers)
    FORMATS.clear()
    FORMATS.update(formats)
    SCHEDULES.clear()
    SCHEDULES.update(schedules)
    METRICS.clear()
    METRICS.update(metrics)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_metric_of_the_users_own_may_be_the_objective(here: Path) -> None:
    (here / "of_my_own_metric.py").write_text(METRIC)
    load_plugins(["of_my_own_metric"])
    assert "eval/brier" in objectives()


def test_a_tracker_of_the_users_own_is_known(here: Path) -> None:
    (here / "of_my_own_tracker.py").write_text(TRACKER)
    with pytest.raises(ConfigError, match="lines"):
        check_names(["lines"])
    load_plugins(["of_my_own_tracker"])
    check_names(["lines"])
    load_plugins(["of_my_own_tracker"])  # a second trial of the same process


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "plugins: broken_of_my_own: ModuleNotFoundError: No module named"),
        ("1 / 0", "plugins: broken_of_my_own: ZeroDivisionError"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        (TRACKER.replace('"lines", l', '"wandb", l'), "the tracker wandb is in the register already"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(here: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (here / "broken_of_my_own.py").write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_plugins(["broken_of_my_own"])
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_trials_of_a_sweep_write_to_a_tracker_of_the_users_own(sft: Sft, tmp_path: Path) -> None:
    (tmp_path / "my_trackers.py").write_text(TRACKER)
    done = sft(
        "sweep", "plugins=[my_trackers]", "logger=none", "logger.trackers=[lines]", "sweep.check=false",
        "train.learning_rate=1e-3,2e-3", "train.effective_batch_size=16", "train.max_steps=4",
        "dataset.demo.num_train=200",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    written = [file.read_text() for file in tmp_path.glob("outputs/*/*/lines.txt")]
    assert [line.split()[1] for line in written] == ["completed"] * 2


def quiz(here: Path, content: str) -> tuple[list[Message], str]:
    """The messages of one row in a format of the user's own, and the fingerprint of its file."""
    name = f"quiz_of_my_own_{len(list(here.iterdir()))}"
    (here / f"{name}.py").write_text(content)
    FORMATS.pop("quiz", None)
    load_plugins([name])
    (here / "rows.jsonl").write_text('{"question": "two and two ?", "A": "four"}\n')
    overrides = ["dataset=messages", "dataset.format=quiz", "+dataset.columns.answer=A"]
    with composed([*overrides, f"dataset.train_files=[{here / 'rows.jsonl'}]"]) as composer:
        config = to_config(composer.master)
    check_config(config)
    conversation = read_conversation({"question": "two and two ?", "A": "four"}, config.dataset, Origin("rows", 1))
    return conversation.messages, dataset_fingerprint(config.dataset)["train"]


def test_a_data_format_of_the_users_own_reads_rows_and_its_code_is_part_of_what_they_are(here: Path) -> None:
    messages, fingerprint = quiz(here, FORMAT)
    assert [message["content"] for message in messages] == ["two and two ?", "four"]
    assert quiz(here, FORMAT) == (messages, fingerprint)
    louder, changed = quiz(here, FORMAT.replace('"content": said', '"content": said.upper()'))
    assert louder[1]["content"] == "FOUR"
    assert changed != fingerprint


def test_a_field_of_such_a_format_is_told_how_to_be_added(here: Path) -> None:
    quiz(here, FORMAT)
    with pytest.raises(ConfigError, match=r"write \+dataset\.columns\.answer="), composed(["dataset.columns.answer=A"]):
        pass


def test_a_format_that_nobody_knows_is_refused_with_the_known_ones() -> None:
    with composed(["dataset=messages", "dataset.format=sharegtp", "dataset.train_files=[rows.jsonl]"]) as composer:
        config = to_config(composer.master)
    with pytest.raises(ConfigError, match=r"dataset\.format=sharegtp: choose one of messages, .*sharegpt") as raised:
        check_config(config)
    assert len(str(raised.value).splitlines()) == 1


def test_a_schedule_that_would_hide_one_of_transformers_is_refused(here: Path) -> None:
    (here / "hiding_of_my_own.py").write_text(SCHEDULE.replace('"waves"', '"cosine"'))
    refusal = r"scheduler\.name=cosine: a plugin.s schedule has the name of one of"
    with pytest.raises(ConfigError, match=refusal), composed(["plugins=[hiding_of_my_own]"]) as composer:
        plan_run(composer)


def identity_with(content: str, here: Path) -> str:
    """The trial id of a run with a schedule of the user's own."""
    name = f"waves_of_my_own_{len(list(here.iterdir()))}"
    (here / f"{name}.py").write_text(content)
    SCHEDULES.pop("waves", None)
    with composed([f"plugins=[{name}]", "scheduler.name=waves"]) as composer:
        return plan_run(composer).id


def test_the_code_of_a_schedule_of_the_users_own_is_part_of_the_trials_identity(here: Path) -> None:
    identity = identity_with(SCHEDULE, here)
    assert identity_with(SCHEDULE, here) == identity
    assert identity_with(SCHEDULE.replace("0.45", "0.35"), here) != identity


@pytest.mark.parametrize(
    ("content", "override", "expected"),
    [
        (SCHEDULE, "+scheduler.kwargs.bump=2", "scheduler.name=waves: TypeError: waves() got an unexpected keyword"),
        (SCHEDULE.replace("step / warmup_steps", "None"), "name=x", "scheduler.name=waves: step 1 of 10 has "),
        (SCHEDULE.replace("step / warmup_steps", "-0.1"), "name=x", "must be a share of the peak, at least 0"),
        ("", "name=x", "scheduler.name=waves: no such name"),
    ],
)
def test_a_schedule_that_gives_no_rate_is_one_line_before_anything_runs(
    here: Path, content: str, override: str, expected: str
) -> None:
    name = f"broken_waves_{abs(hash((content, override)))}"
    (here / f"{name}.py").write_text(content.replace("step < warmup_steps", "step <= warmup_steps"))
    SCHEDULES.pop("waves", None)
    arguments = [f"plugins=[{name}]", "scheduler.name=waves", override]
    with pytest.raises(ConfigError) as raised, composed(arguments) as composer:
        plan_run(composer)
    assert expected in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_a_run_follows_a_schedule_of_the_users_own_also_after_a_stop(sft: Sft, tmp_path: Path) -> None:
    (tmp_path / "my_schedules.py").write_text(SCHEDULE)
    arguments = (
        "sweep", "plugins=[my_schedules]", "scheduler.name=cosine,waves", "scheduler.warmup_steps=2", "logger=none",
        "sweep.check=false", "train.learning_rate=1e-3", "train.effective_batch_size=16", "train.max_steps=10",
        "train.logging_steps=1", "dataset.demo.num_train=200", "sweep.early_stopping=halving", "sweep.rungs=[0.5]",
        "sweep.reduction_factor=1.01",
    )  # fmt: skip
    done = sft(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the code of a schedule differs" not in done.stdout
    folders = {folder.path.name.split("-")[0]: folder for folder in find_run_folders(tmp_path)}
    (folder,) = [folder for name, folder in folders.items() if "waves" in name]
    assert read_record(folder).attempts == 2  # it waited at its rung
    logged = [event["train/learning_rate"] for event in read_events(folder.metrics) if "train/learning_rate" in event]
    space: dict[str, Any] = {}
    exec(SCHEDULE.replace('add_schedule("waves", waves)', ""), space)
    assert logged == pytest.approx([1e-3 * space["waves"](step, 2, 10) for step in range(10)])
