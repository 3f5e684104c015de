"""No two runs of ours meet on a GPU, and none takes one that others fill, unless the user says so."""

import os
import subprocess
import sys

import pytest

from sft_experiments.errors import ConfigError
from sft_experiments.launch.booking import booked, candidates, show_one_gpu
from sft_experiments.plan.gpus import VISIBLE, gpus
from tests.plan.fake_nvml import Card, cards

ANY = None


def indices(named: list[str] | None) -> list[int]:
    return [gpu.index for gpu in candidates(named)]


def test_gpus_that_others_fill_are_left_to_them(on_gpus) -> None:
    on_gpus(Card("GPU-a", used=61), Card("GPU-b"), Card("GPU-c", used=2))
    assert indices(ANY) == [1, 2]
    with booked(ANY, 2) as gpus:
        assert [gpu.index for gpu in gpus] == [1, 2]


def test_where_all_are_filled_in_part_they_are_used(on_gpus) -> None:
    on_gpus(Card("GPU-a", used=20), Card("GPU-b", used=30))
    assert indices(ANY) == [0, 1]


def test_two_runs_do_not_meet_on_a_gpu(on_gpus) -> None:
    on_gpus(*cards("GPU-a", "GPU-b"))
    with booked(ANY, 1) as first, booked(ANY, 1) as second:
        assert [gpu.index for gpu in (*first, *second)] == [0, 1]
        assert indices(ANY) == []
        with (
            pytest.raises(ConfigError, match=r"1 GPU.* of 2 visible ones 0 are free .*compute\.devices=\[0\]"),
            booked(ANY, 1),
        ):
            pass
    assert indices(ANY) == [0, 1]


def test_gpus_that_are_named_are_shared(on_gpus) -> None:
    on_gpus(Card("GPU-a", used=61), Card("GPU-b"))
    named = ["1", "0"]
    with booked(named, 1) as first, booked(named, 1) as second:
        assert [gpu.index for gpu in (*first, *second)] == [1, 1]
        assert indices(ANY) == [0]  # the other is held


def test_a_run_that_was_killed_holds_nothing(on_gpus) -> None:
    """Another process with the same card, killed while it trains."""
    on_gpus(*cards("GPU-a"))
    code = """
import sys, time
from contextlib import ExitStack
from sft_experiments.launch.booking import _hold
from sft_experiments.plan.gpus import Gpu
with ExitStack() as held:
    print(_hold(Gpu(0, "Test GPU", 80.0, 9.0, "GPU-a"), held), flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    assert indices(ANY) == []
    other.kill()
    other.wait()
    other.stdout.close()
    assert indices(ANY) == [0]


def test_work_inside_this_process_sees_one_gpu_and_the_idlest(on_gpus, monkeypatch) -> None:
    on_gpus()
    show_one_gpu()
    assert VISIBLE not in os.environ
    monkeypatch.setenv(VISIBLE, "0,1,2")  # put back afterwards
    on_gpus(Card("GPU-a", used=61), Card("GPU-b"), Card("GPU-c"), visible="0,1,2")
    with booked(ANY, 1):
        show_one_gpu()
    assert os.environ[VISIBLE] == "GPU-c"
    show_one_gpu(["2"])
    assert [gpu.index for gpu in gpus()] == [2]
