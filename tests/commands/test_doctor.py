"""`sft doctor` tells on one screen whether a run could start here, and says so with its exit code."""

import json
import sys
from collections.abc import Callable

import pytest

from sft_experiments.commands import doctor, run
from sft_experiments.commands.doctor import Finding, examine
from sft_experiments.launch.booking import booked
from tests.plan.fake_nvml import Card


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return list(examine())


def test_this_machine_is_ready(findings: list[Finding]) -> None:
    assert [finding for finding in findings if finding.state == "problem"] == []
    names = {finding.name for finding in findings}
    assert {"packages", "torch sees", "attention", "device", "precision", "CPU", "W&B", "runs", "cache"} <= names
    assert len(findings) <= 24  # one screen


def test_a_missing_extra_is_a_note_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "optuna" else "1.0")
    notes = {finding.name: finding for finding in doctor._packages()}
    assert notes["optuna"].state == "note"
    assert "pip install 'sft-experiments[optuna]'" in notes["optuna"].found


def test_a_missing_requirement_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "trl" else "1.0")
    assert any(finding.state == "problem" and "trl" in finding.found for finding in doctor._packages())


def test_each_gpu_is_listed_with_who_has_it(on_gpus: Callable[..., None]) -> None:
    on_gpus(Card("GPU-a", used=61), Card("GPU-b"), Card("GPU-c"))
    with booked(None, 1):
        found = {finding.name: finding for finding in doctor._devices()}
    assert [found[f"GPU {index}"].state for index in range(3)] == ["note", "note", "ok"]
    assert "61 of 80 GiB in use by others" in found["GPU 0"].found
    assert "a run of ours has it" in found["GPU 1"].found


def test_gpus_that_cannot_be_asked_for_are_a_problem(on_gpus: Callable[..., None]) -> None:
    on_gpus(visible="3")
    (finding,) = doctor._devices()
    assert (finding.state, finding.name) == ("problem", "device")
    assert "CUDA_VISIBLE_DEVICES=3: no GPU 3 is here" in finding.found


def test_a_torch_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TORCH_FACTS", "raise ImportError('libcudart.so.99: cannot open shared object file')")
    (finding,) = doctor._torch()
    assert finding.state == "problem"
    assert "libcudart.so.99" in finding.found


def test_the_exit_code_and_the_json_say_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for state, code in (("problem", 1), ("note", 0)):
        monkeypatch.setattr(doctor, "examine", lambda state=state: iter([Finding(state, "disk", "full")]))
        assert run("doctor", ["--json"]) == code
        assert json.loads(capsys.readouterr().out) == [{"state": state, "name": "disk", "found": "full"}]


def test_the_command_itself_imports_no_torch(findings: list[Finding]) -> None:
    assert "TORCH_FACTS" in vars(doctor)
    assert not any(name in vars(doctor) for name in ("torch", "transformers"))
    assert sys.modules["sft_experiments.commands.doctor"] is doctor
