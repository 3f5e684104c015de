"""Modules of the user's own add to the registers; one that cannot be imported is a mistake in a setting."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.config.load import load_plugins, to_config
from sft_experiments.config.validate import check_config
from sft_experiments.data.formats import FORMATS, Message, Origin, read_conversation
from sft_experiments.data.store import dataset_fingerprint
from sft_experiments.errors import ConfigError
from sft_experiments.monitor.trackers.register import TRACKERS, check_names
from sft_experiments.runs.metrics import METRICS, objectives
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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose modules are forgotten again, with what they added to the registers."""
    monkeypatch.chdir(tmp_path)
    path, trackers, metrics, known = [*sys.path], dict(TRACKERS), dict(METRICS), set(sys.modules)
    formats = dict(FORMATS)
    yield tmp_path
    sys.path[:] = path
    TRACKERS.clear()
    TRACKERS.update(trackers)
    FORMATS.clear()
    FORMATS.update(formats)
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
