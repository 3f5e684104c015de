"""What W&B has on disk after a run, read back with its own reader; without account or network."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb

from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.monitor.trackers.wandb_tracker import WandbTracker
from sft_experiments.runs.metrics import Alert, Sample
from sft_experiments.schema import WandbConfig, WandbMode
from tests.monitor.trackers.wandb_files import history, records, run_folders, summary

SETTINGS = {"model.name": "tiny", "dataset.name": "demo", "scheduler.name": "cosine", "train.learning_rate": 2e-3}


def started(folder: Path, identity: RunIdentity) -> WandbTracker:
    tracker = WandbTracker(WandbConfig(project="p", mode=WandbMode.auto, tags=["mine"]), folder, finish_seconds=20)
    tracker.start(identity, SETTINGS)
    return tracker


def log(tracker: WandbTracker, step: int, **values: float) -> None:
    tracker.log({"step": step, "tokens": 100 * step, "epoch": step / 10, "time": 1.0, **values})


@pytest.fixture
def written(tmp_path: Path, identity: RunIdentity) -> Path:
    """The W&B folder of a run that completed."""
    tracker = started(tmp_path, identity)
    for step in range(1, 6):
        log(tracker, step, **{"train/loss": 1 / step})
    log(tracker, 5, **{"eval/loss": 0.3})
    tracker.samples([Sample(5, 0, [{"role": "user", "content": "2+2?"}], "4", "4", True)])
    tracker.alert(Alert("loss_spike", "warn", 3, "train/loss jumped"))
    tracker.finish("completed", {"best/eval/loss": 0.3, "best/step": 5})
    (folder,) = run_folders(tmp_path)
    return folder


@pytest.mark.slow
def test_a_run_has_its_names_config_and_outcome(written: Path) -> None:
    content = summary(written)
    assert (content["run_id"], content["name"], content["project"]) == ("0123456789ab", "learning_rate=2e-3", "p")
    assert content["tags"] == ["mine", "tiny", "demo", "cosine"]
    assert content["config"]["train.learning_rate"] == 2e-3
    assert content["config"]["fingerprints"] == {"train": "aaaa", "model": "bbbb"}
    assert (content["state"], content["exit_code"]) == ("finished", 0)
    assert content["summary"]["best/eval/loss"] == 0.3
    assert content["summary"]["status"] == "completed"
    (run, *_) = [record["run"] for record in records(written) if record["type"] == "run"]
    assert (run["run_group"], run["job_type"]) == ("grid-ffff", "train")


def started_as(folder: Path, identity: RunIdentity) -> tuple[dict[str, Any], list[str]]:
    """What the run of a tracker in a fresh process is called, and its notes."""
    wandb.teardown()  # it reads the environment once
    tracker = started(folder, identity)
    tracker.finish("completed", {})
    (written,) = run_folders(folder)
    (run, *_) = [record["run"] for record in records(written) if record["type"] == "run"]
    return run, tracker.notes


@pytest.mark.slow
def test_the_environment_names_one_run_and_never_the_trials_of_a_sweep(
    tmp_path: Path, identity: RunIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_one = {"WANDB_NAME": "mine", "WANDB_RUN_ID": "fromagent", "WANDB_SWEEP_ID": "s"}
    for name, value in {**of_one, "WANDB_RUN_GROUP": "team"}.items():
        monkeypatch.setenv(name, value)
    alone, _ = started_as(tmp_path / "alone", replace(identity, sweep=None))
    assert (alone["run_id"], alone["display_name"], alone["run_group"]) == ("fromagent", "mine", "team")
    trial, notes = started_as(tmp_path / "trial", identity)
    assert (trial["run_id"], trial["display_name"]) == (identity.trial_id, identity.label)
    assert trial["run_group"] == "team"
    assert any("WANDB_NAME" in note and "each trial is one" in note for note in notes)


@pytest.mark.slow
def test_metrics_share_our_step_axis_and_know_the_tokens(written: Path) -> None:
    rows = history(written)
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["_step"] == row["step"] and row["tokens"] == 100 * row["step"] for row in rows)
    assert rows[-1]["eval/loss"] == 0.3  # train and eval of one step are one row
    defined = [record["metric"] for record in records(written) if record["type"] == "metric"]
    axes = {metric.get("glob_name") or metric["name"]: metric.get("step_metric") for metric in defined}
    assert axes["train/*"] == axes["eval/*"] == axes["memory/*"] == "step"


@pytest.mark.slow
def test_alerts_and_samples_are_there(written: Path) -> None:
    (alert,) = [record["alert"] for record in records(written) if record["type"] == "alert"]
    assert (alert["title"], alert["text"], alert["level"]) == ("loss_spike", "train/loss jumped", "WARN")
    (table,) = (written / "files/media/table").glob("samples*.json")
    assert json.loads(table.read_text())["data"] == [[5, 0, "user: 2+2?", "4", "4", True]]


@pytest.mark.slow
def test_nothing_tells_the_command_line_or_the_code(written: Path) -> None:
    assert not (written / "files/wandb-metadata.json").exists()
    assert not (written / "files/code").exists()


@pytest.mark.slow
@pytest.mark.parametrize("status", ["failed", "diverged", "oom", "preempted"])
def test_a_run_that_did_not_complete_is_not_finished(tmp_path: Path, identity: RunIdentity, status: str) -> None:
    tracker = started(tmp_path, identity)
    tracker.finish(status, {})
    content = summary(run_folders(tmp_path)[0])
    assert content["exit_code"] == 1
    assert content["summary"]["status"] == status


def attempt_after_three_steps(folder: Path, identity: RunIdentity) -> WandbTracker:
    """A second attempt at a run whose first one lost its last step and had trained beyond the checkpoint."""
    import dataclasses

    first = started(folder, identity)
    for step in (1, 2, 4):
        log(first, step, **{"train/loss": 1.0})
    first.finish("preempted", {})
    lines = [{"step": step, "tokens": 100 * step, "epoch": 0.1, "time": 1.0, "train/loss": 1.0} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return started(folder, dataclasses.replace(identity, resumed_step=3))


@pytest.mark.slow
def test_a_resumed_run_keeps_its_id_and_is_whole_in_one_folder(tmp_path: Path, identity: RunIdentity) -> None:
    second = attempt_after_three_steps(tmp_path, identity)
    for step in (4, 5):
        log(second, step, **{"train/loss": 0.5})
    second.finish("completed", {})
    (run,) = run_folders(tmp_path)
    (aside,) = (tmp_path / "wandb/earlier").iterdir()
    assert (summary(run)["run_id"], summary(aside)["run_id"]) == ("0123456789ab", "0123456789ab")
    assert [(row["_step"], row["train/loss"]) for row in history(run)] == [(1, 1), (2, 1), (3, 1), (4, 0.5), (5, 0.5)]


@pytest.mark.slow
def test_what_was_uploaded_meanwhile_is_not_told_again(tmp_path: Path, identity: RunIdentity) -> None:
    started(tmp_path, identity).finish("preempted", {})
    (first,) = run_folders(tmp_path)
    (first / "run-0123456789ab.wandb.synced").touch()
    second = attempt_after_three_steps(tmp_path, identity)
    log(second, 4, **{"train/loss": 0.5})
    second.finish("completed", {})
    assert [row["_step"] for row in history(run_folders(tmp_path)[-1])] == [4]


@pytest.mark.slow
def test_offline_says_why_and_how_to_upload(tmp_path: Path, identity: RunIdentity) -> None:
    tracker = started(tmp_path, identity)
    tracker.finish("completed", {})
    (note,) = tracker.notes
    assert "no API key" in note
    assert f"wandb sync {tmp_path}/wandb/*run-*" in note


SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, os.environ["REPOSITORY"])
from sft_experiments.monitor.trackers.register import build_trackers
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.runs.folder import RunFolder
from tests.monitor.conftest import run_config

config = run_config("wandb")
config.logger.finish_seconds = float(os.environ.get("FINISH_SECONDS", "40"))  # a busy machine starts W&B slowly
trackers = build_trackers(config, RunFolder(Path(sys.argv[1])), RunIdentity("0123456789ab", "grid", "lr=1"))
slowest = 0.0
for step in range(1, 41):
    began = time.monotonic()
    trackers.log({"step": step, "tokens": step, "epoch": 0, "time": 0, "train/loss": 1 / step})
    slowest = max(slowest, time.monotonic() - began)
    time.sleep(0.05)
    if step == 30 and sys.argv[2]:
        while not trackers.take_notes():  # W&B has started, and says that it is offline
            time.sleep(0.1)
        exec(sys.argv[2])
notes = trackers.finish("completed", {"eval/loss": 1.0})
print("slowest", slowest)
print(*notes, sep="\\n")
"""


def run_script(
    tmp_path: Path, at_step_30: str = "", **environment: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """A process with a W&B tracker, and how long its slowest call of ``log`` took."""
    folder = tmp_path / "run"
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), at_step_30],
        env={**kept, "REPOSITORY": str(Path(__file__).parents[3]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    slowest = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("slowest")]
    return done, float(slowest[0]) if slowest else 0.0


KEY = "0123456789" * 4


@pytest.mark.slow
def test_a_run_that_is_killed_has_its_config_on_disk(tmp_path: Path) -> None:
    done, _ = run_script(tmp_path, "time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    content = summary(run_folders(tmp_path / "run")[0])
    assert content["config"]["name"] == "grid"
    assert content["step"] >= 29  # W&B holds back the newest row
    assert content["exit_code"] is None


@pytest.mark.slow
def test_a_dead_host_means_offline(tmp_path: Path) -> None:
    done, slowest = run_script(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "wandb is offline (http://127.0.0.1:1 cannot be reached" in done.stdout
    assert slowest < 1
    assert summary(run_folders(tmp_path / "run")[0])["state"] == "finished"


@pytest.mark.slow
def test_a_host_that_accepts_and_never_answers_means_offline(tmp_path: Path, silent_host: str) -> None:
    done, slowest = run_script(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=silent_host)
    assert done.returncode == 0, done.stderr
    assert "did not answer within 2 s" in done.stdout
    assert slowest < 1
    assert summary(run_folders(tmp_path / "run")[0])["state"] == "finished"


@pytest.mark.slow
def test_a_host_that_stops_answering_is_left_behind(tmp_path: Path, host_that_only_knows_the_key: str) -> None:
    done, slowest = run_script(
        tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=host_that_only_knows_the_key, FINISH_SECONDS="3"
    )
    assert done.returncode == 0, done.stderr
    assert "wandb did not answer in time and was left behind" in done.stdout
    assert slowest < 1
    assert KEY not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_death_of_its_service_process_is_survived(tmp_path: Path) -> None:
    kill = "import psutil; [child.kill() for child in psutil.Process().children() if 'wandb' in child.name()]"
    done, slowest = run_script(tmp_path, kill)
    assert done.returncode == 0
    assert "wandb stopped in log: " in done.stdout
    assert done.stderr == ""
    assert slowest < 1


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_survived(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("a file is in the way")
    done, slowest = run_into_obstacle(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert slowest < 1


def run_into_obstacle(folder: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), ""],
        env={**os.environ, "REPOSITORY": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, float(done.stdout.split()[1])


@pytest.fixture
def silent_host() -> Any:
    """Accepts connections and never says a word."""
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)  # the kernel completes connections; nobody ever reads them
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def host_that_only_knows_the_key() -> Any:
    """Says who the key belongs to, and hangs on everything else."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            if b"query { viewer { id } }" not in query:
                over.wait()
                return
            answer = b'{"data": {"viewer": {"id": "someone"}}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
