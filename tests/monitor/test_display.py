"""Nothing on the terminal is garbled: bar, plain lines, log."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft_experiments.monitor.session import describe_alert, describe_event
from sft_experiments.runs.metrics import Alert

SCRIPT = """
import sys
from pathlib import Path
from sft_experiments.monitor.session import build_display
from sft_experiments.runs.metrics import Alert
from sft_experiments.schema import TerminalMode

log = Path(sys.argv[1])
if sys.stdout.isatty():
    from sft_experiments.training.worker import copy_output_to
else:
    from contextlib import nullcontext as copy_output_to  # quick: the worker imports torch
with copy_output_to(log):
    display = build_display(TerminalMode.auto, 20, log)
    for step in range(1, 21):
        display.step(step)
        if step % 5 == 0:
            display.event({"step": step, "train/loss": 1 / step, "train/learning_rate": 1e-3})
        if step == 10:
            print("someone prints")
            print("someone warns", file=sys.stderr)
            display.event({"step": step, "eval/loss": 0.3, "eval/train_gap": 0.1})
            display.alert(Alert("loss_spike", "warn", 10, "train/loss jumped", 1, 10))
    display.close()
    print("after")
"""
LINES = [
    "step 5/20  loss 0.2000  lr 1e-3",
    "step 10/20  loss 0.1000  lr 1e-3",
    "someone prints",
    "someone warns",
    "step 10/20  eval loss 0.3000  gap +0.100",
    "WARNING loss_spike at step 10: train/loss jumped",
    "step 15/20  loss 0.0667  lr 1e-3",
    "step 20/20  loss 0.0500  lr 1e-3",
    "after",
]


def test_without_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(log)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [line for line in LINES if line != "someone warns"]


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_and_the_log_has_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    screen = run_on_a_terminal([sys.executable, "-c", SCRIPT, str(log)])
    assert log.read_text().splitlines() == LINES
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert "20/20" in plain and "eta" in plain
    for line in ("someone prints", "someone warns", "WARNING loss_spike at step 10: train/loss jumped", "after"):
        assert re.search(rf"(^|[\r\n]){re.escape(line)}\r?\n", plain), line  # on a line of its own
    assert "\x1b[33mWARNING" in screen  # in colour


def run_on_a_terminal(command: list[str]) -> str:
    """What a terminal of 100 columns receives."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        chunks = []
        while True:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        assert process.wait() == 0, b"".join(chunks).decode()
    os.close(leader)
    return b"".join(chunks).decode()


def test_an_event_is_one_readable_line() -> None:
    event = {"step": 3, "train/loss": 1.23456, "train/tokens_per_second": 12345.0, "train/grad_norm": 0.5}
    assert describe_event(event) == "loss 1.2346  norm 0.5  12.3k tokens/s"


def test_a_repeated_alert_says_how_often() -> None:
    alert = Alert("grad_norm_high", "stop", 3, "gradient norm is 50", count=10, last_step=12)
    assert describe_alert(alert) == "STOP grad_norm_high at step 12: gradient norm is 50 (seen 10 times)"
