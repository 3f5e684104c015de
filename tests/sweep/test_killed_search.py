"""SIGKILL for a Bayesian search, anywhere: the same command ends as if nothing had happened."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from sft_experiments.runs.folder import RunFolder, find_run_folders
from sft_experiments.runs.record import Status, read_record
from sft_experiments.sweep.search.study import STUDY_FILE
from tests.sweep.conftest import TINY, Done
from tests.sweep.test_stopping import first_event, processes_of, steps_done, wait_until

pytestmark = pytest.mark.slow

NUM_TRIALS = 7  # two more than are drawn at random: those the model of the objective proposes
SPACE = [
    *("sweep=optuna", f"sweep.num_trials={NUM_TRIALS}", "train.learning_rate=tag(log,interval(1e-4,1e-2))"),
    *("train.effective_batch_size=4,8", "train.max_steps=4"),
]
Launch = Callable[..., "subprocess.Popen[bytes]"]


def _has_come_to(process: "subprocess.Popen[bytes]", moment: int, home: Path) -> bool:
    return steps_done(home) >= moment or process.poll() is not None


def trials_of(home: Path) -> list[FrozenTrial]:
    (file,) = home.rglob(STUDY_FILE)
    trials: list[FrozenTrial] = optuna.load_study(study_name=None, storage=f"sqlite:///{file}").get_trials()
    return trials


def told(home: Path) -> list[tuple[object, ...]]:
    """All that later proposals depend on."""
    return [(one.number, one.state, one.params, one.value) for one in trials_of(home)]


@pytest.fixture(scope="session")
def quiet_search(sweep_in: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Done]:
    """``quiet_search(concurrent)``: a search that nothing happens to, run once."""
    known: dict[int, Done] = {}

    def search(concurrent: int) -> Done:
        if concurrent not in known:
            home = tmp_path_factory.mktemp("quiet-search")
            known[concurrent] = sweep_in(home, *SPACE, f"sweep.concurrent_trials={concurrent}")
            assert known[concurrent].code == 0, known[concurrent].shown
        return known[concurrent]

    return search


@pytest.fixture
def launch(tmp_path: Path, faulty_environment: dict[str, str], plant: Callable[..., None]) -> Iterator[Launch]:
    """``launch(code, *overrides)``: the search as a process of its own that runs ``code`` first; its steps are slow."""
    plant({"at": "every step", "do": "linger"})
    root = Path(__file__).parents[2]
    environment = {**faulty_environment, "SWEEP_OF_TEST": str(tmp_path)}
    environment["PYTHONPATH"] += f":{root}"
    launched: list[subprocess.Popen[bytes]] = []

    def start(code: str, *overrides: str) -> "subprocess.Popen[bytes]":
        script = f"import sys\nfrom sft_experiments.commands import main\n{code}\nsys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", script, "train", "-m", *TINY, *SPACE, *overrides]
        with (tmp_path / "launches.txt").open("ab") as shown:
            launched.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=shown, stderr=shown))
        return launched[-1]

    yield start
    for process in launched:
        process.kill()
        process.wait()


def assert_as_if_quiet(done: Done, quiet: Done) -> None:
    assert done.code == 0, done.shown
    assert told(done.home) == told(quiet.home)
    assert {one.state for one in trials_of(done.home)} == {TrialState.COMPLETE}
    assert len(done.records()) == NUM_TRIALS
    assert {record.trial_id: record.objective for record in done.records()} == {
        record.trial_id: record.objective for record in quiet.records()
    }
    ranks = [line.split()[0] for line in done.shown.splitlines() if "best" in line or line.strip()[:1].isdigit()]
    assert str(NUM_TRIALS) in ranks, done.shown


@pytest.mark.parametrize("concurrent", [1, 2])
def test_a_search_killed_again_and_again_ends_as_the_quiet_one(
    launch: Launch, sweep: Callable[..., Done], plant: Callable[..., None], quiet_search: Callable[[int], Done],
    tmp_path: Path, concurrent: int,
) -> None:  # fmt: skip
    moments = sorted(random.Random(concurrent).sample(range(1, 4 * NUM_TRIALS - 6), 2))  # steps of 28
    setting = f"sweep.concurrent_trials={concurrent}"
    interrupted: dict[Path, str] = {}
    for moment in moments:
        process = launch("", setting)
        wait_until(partial(_has_come_to, process, moment, tmp_path))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        wait_until(lambda: not processes_of(tmp_path), 60)  # its trials notice, save and end
        stopped = [folder for folder in find_run_folders(tmp_path) if read_record(folder).status is Status.preempted]
        assert len(stopped) <= concurrent
        interrupted |= {folder.path: first_event(folder.path) for folder in stopped}
        assert len(trials_of(tmp_path)) <= NUM_TRIALS
    assert interrupted
    plant()
    assert_as_if_quiet(sweep(*SPACE, setting), quiet_search(concurrent))
    for folder in find_run_folders(tmp_path):
        record = read_record(folder)
        assert record.attempts == 1 or folder.path in interrupted
        steps = [line for line in folder.metrics.read_text().splitlines() if '"eval/loss"' in line]
        assert len(steps) == len(set(steps))
    for path, event in interrupted.items():
        assert first_event(path) == event  # with its time: it did not begin anew
        assert read_record(RunFolder(path)).attempts > 1


DIE = "import os, signal\ndef die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
MOMENTS = {
    "before anything is proposed": "from sft_experiments.sweep.search import bayes\nbayes.propose = die",
    "records written, nothing told": """
from sft_experiments.sweep.search import bayes
bayes.tell = die""",
    "one of a batch told": """
from sft_experiments.sweep.search import bayes
tell = bayes.tell
bayes.tell = lambda study, one, folder: die() if one.number == 3 else tell(study, one, folder)""",
    "between two proposals of a batch": """
from sft_experiments.sweep.search import bayes
propose = bayes.propose
bayes.propose = lambda study, *rest: die() if len(study.trials) == 5 else propose(study, *rest)""",
    "in the middle of telling": """
import optuna
tell = optuna.Study.tell
optuna.Study.tell = lambda self, number, *rest, **how: die() if number == 5 else tell(self, number, *rest, **how)""",
}


def test_killed_between_two_entries_of_its_books_it_trains_nothing_twice(
    launch: Launch, sweep: Callable[..., Done], plant: Callable[..., None], quiet_search: Callable[[int], Done],
    tmp_path: Path,
) -> None:  # fmt: skip
    plant()
    for code in MOMENTS.values():
        process = launch(DIE + code, "sweep.concurrent_trials=2")
        assert process.wait(timeout=240) == -signal.SIGKILL, (tmp_path / "launches.txt").read_text()
        wait_until(lambda: not processes_of(tmp_path), 60)
    states = [one.state for one in trials_of(tmp_path)]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.RUNNING]
    done = sweep(*SPACE, "sweep.concurrent_trials=2")
    assert_as_if_quiet(done, quiet_search(2))
    assert {record.attempts for record in done.records()} == {1}


def test_a_trial_that_the_study_knows_but_whose_folder_is_gone_is_trained_again(
    sweep: Callable[..., Done], quiet_search: Callable[[int], Done], tmp_path: Path
) -> None:
    first = sweep(*SPACE, "sweep.num_trials=2", "sweep.concurrent_trials=2")
    lost, kept = sorted(find_run_folders(tmp_path), key=lambda folder: folder.path)
    before = kept.record.read_bytes()
    lost.path.rename(tmp_path.parent / f"{tmp_path.name}-lost")
    again = sweep(*SPACE, "sweep.num_trials=2", "sweep.concurrent_trials=2")
    assert (first.code, again.code) == (0, 0), again.shown
    assert read_record(lost).status is Status.completed
    assert kept.record.read_bytes() == before
    assert len(trials_of(tmp_path)) == 2
