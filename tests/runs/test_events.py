"""metrics.jsonl survives what happens to processes."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft_experiments.errors import RunFolderError
from sft_experiments.runs.metrics import JsonLinesFile, Sample, append_samples, read_events, read_samples


def event(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "tokens": 10 * step, "epoch": 0.1, "time": 1.0, **values}


def test_events_come_back_in_order(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "metrics.jsonl")
    for step in range(5):
        file.append(event(step))
    assert [line["step"] for line in read_events(file.path)] == [0, 1, 2, 3, 4]


def test_nan_and_infinity_are_strict_json_and_come_back_as_nan(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "metrics.jsonl")
    file.append(event(1, **{"train/loss": math.nan, "train/grad_norm": math.inf}))
    line = json.loads(file.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["train/loss"] is None
    assert math.isnan(read_events(file.path)[0]["train/grad_norm"])


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "metrics.jsonl")
    file.append(event(1))
    with file.path.open("a") as raw:
        raw.write('{"step": 2, "tok')
    assert [line["step"] for line in read_events(file.path)] == [1]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:2 is not JSON"):
        read_events(path)


def test_no_file_means_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "metrics.jsonl") == []


def test_a_resumed_run_trains_later_steps_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLinesFile(path)
    for step in range(10):
        first.append(event(step))
    with path.open("a") as raw:
        raw.write('{"step": 10')  # killed while writing
    resumed = JsonLinesFile(path, resumed_step=5)
    assert [line["step"] for line in resumed.kept] == [0, 1, 2, 3, 4, 5]
    resumed.append(event(6))
    assert [line["step"] for line in read_events(path)] == [0, 1, 2, 3, 4, 5, 6]


def test_a_fresh_start_drops_what_an_earlier_attempt_wrote(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLinesFile(path).append(event(0))
    JsonLinesFile(path).append(event(7))
    assert [line["step"] for line in read_events(path)] == [7]


def test_a_killed_process_loses_no_finished_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    script = (
        "import sys, os, signal; from pathlib import Path\n"
        "from sft_experiments.runs.metrics import JsonLinesFile\n"
        "file = JsonLinesFile(Path(sys.argv[1]))\n"
        "for step in range(100): file.append({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_events(path)] == list(range(100))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "metrics.jsonl")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._descriptor)
    os.close(full)
    with pytest.raises(RunFolderError, match=r"cannot write .*metrics\.jsonl: No space left"):
        file.append(event(1))


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    file = JsonLinesFile(tmp_path / "samples.jsonl")
    samples = [Sample(3, 0, [{"role": "user", "content": "2+2? ü"}], "4", "4", True), Sample(3, 1, [], "no\nyes")]
    append_samples(file, samples)
    assert read_samples(file.path) == samples
