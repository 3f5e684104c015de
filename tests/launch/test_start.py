"""Whatever becomes of a worker, the record says it; a folder in use is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from sft_experiments.errors import RunFolderError, TrainingFailed
from sft_experiments.files import hold, is_held
from sft_experiments.launch.retry import run_trial
from sft_experiments.launch.settle import raise_for_failure, settle
from sft_experiments.launch.start import worker_environment
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Record, Status, read_record


def running(path: Path) -> RunFolder:
    folder = RunFolder(path)
    Record("abc", "name", "label", Status.running).write(folder)
    folder.log.write_text("first line\nlast words\n")
    return folder


@pytest.mark.parametrize(
    ("exit_code", "status", "kind"),
    [(1, Status.failed, "exit code 1"), (-11, Status.killed, "SIGSEGV"), (-9, Status.killed, "SIGKILL")],
)
def test_a_worker_that_died_without_a_word_is_recorded_with_its_last_lines(
    tmp_path: Path, exit_code: int, status: Status, kind: str
) -> None:
    folder = running(tmp_path)
    record = settle(folder, exit_code)
    assert (record.status, record.failure.kind) == (status, kind)
    assert record.failure.log_tail == ["first line", "last words"]
    assert read_record(folder) == record


def test_the_reason_of_an_exit_names_the_last_words(tmp_path: Path) -> None:
    assert settle(running(tmp_path), 1).failure.message.endswith("exit code 1: last words")


def test_a_failure_keeps_its_class_on_the_way_between_processes(tmp_path: Path) -> None:
    import pickle

    with pytest.raises(TrainingFailed) as failure:
        raise_for_failure(settle(running(tmp_path), -9))
    again = pickle.loads(pickle.dumps(failure.value))
    assert (again.status, str(again)) == ("killed", str(failure.value))


def test_a_folder_in_use_by_another_process_is_refused_at_once(planned) -> None:
    trial = planned()
    trial.write()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom sft_experiments.files import hold\n"
        f"with hold(Path({str(trial.folder.lock.resolve())!r}), 'a test'):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert is_held(trial.folder.lock)
        with pytest.raises(RunFolderError, match="already being trained"):
            run_trial(trial)
        with pytest.raises(RunFolderError, match="in use"), hold(trial.folder.lock, "its training"):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert not is_held(trial.folder.lock)  # the kernel let go when its holder died


def test_ctrl_c_while_the_fork_server_starts_comes_when_it_has() -> None:
    code = (
        "import os, signal\nfrom multiprocessing import forkserver\n"
        "from sft_experiments.launch.start import WarmStarter\n"
        "def start():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('started')\n"
        "forkserver.ensure_running = start\n"
        "try:\n    WarmStarter().prepare(1)\nexcept KeyboardInterrupt:\n    print('stopped')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["started", "stopped"], done.stderr


def test_the_fork_server_and_its_children_survive_ctrl_c_while_it_imports(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\nfrom multiprocessing import forkserver, get_context\n"
        "from sft_experiments.launch.start import WarmStarter\n"
        "signal.signal(signal.SIGINT, lambda *_: print('the sweep knows', flush=True))\n"
        "WarmStarter().prepare(1)\nos.killpg(0, signal.SIGINT)\n"
        "child = get_context('forkserver').Process(target=print, args=('trained',))\nchild.start()\nchild.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, timeout=120
    )
    assert done.stdout.splitlines() == ["the sweep knows", "trained"], done.stderr


def test_workers_get_their_threads_and_sleep_when_idle() -> None:
    environment = worker_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_a_trial_does_not_inherit_the_wandb_service_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "3-123-unix-/tmp/socket")
    monkeypatch.setenv("WANDB_MODE", "offline")
    environment = worker_environment(threads=1)
    assert "WANDB_SERVICE" not in environment
    assert environment["WANDB_MODE"] == "offline"
