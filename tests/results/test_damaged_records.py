"""A record edited by hand, or written by a broken program, never breaks the table or the page of the others."""

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sft_experiments.report.on_terminal import compare
from sft_experiments.report.publish import write_report
from sft_experiments.runs.record import Record
from tests.results.sweep_factory import write_run

JUNK: list[Any] = [None, 3, float("nan"), float("inf"), "text", [], ["x"], [{"rule": 1}], {}, {"a": {"b": None}}, True]
NESTED = ["metrics.tokens", "metrics.best/step", "timings.train", "timings.total", "fingerprints.train_data",
          "config.train", "axes.train.learning_rate", "environment.git", "environment.versions"]  # fmt: skip


@pytest.mark.parametrize("place", [field.name for field in fields(Record)] + NESTED)
def test_junk_in_any_place_is_survived(tmp_path: Path, place: str) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    folder = write_run(tmp_path, 2e-3, 8, 0.4, alerts=[{"rule": "spike", "step": 3, "message": "m", "count": 2}])
    content = json.loads(folder.record.read_text(encoding="utf-8"))
    outer, _, inner = place.partition(".")
    for junk in JUNK:
        damaged = {**content, outer: {**content[outer], inner: junk} if inner else junk}
        folder.record.write_text(json.dumps(damaged), encoding="utf-8")
        console = Console(file=io.StringIO(), width=100)
        compare([tmp_path], console)
        assert "0.5000" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["steps", "steps.total_steps", "values", "batch", "device"])
def test_a_damaged_plan_is_survived_by_table_and_page(tmp_path: Path, place: str) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5, curves=True)
    folder = write_run(tmp_path, 2e-3, 8, 0.4)
    content = json.loads(folder.plan.read_text(encoding="utf-8"))
    outer, _, inner = place.partition(".")
    for junk in JUNK:
        damaged = {**content, outer: {**content[outer], inner: junk} if inner else junk}
        folder.plan.write_text(json.dumps(damaged), encoding="utf-8")
        compare([tmp_path], Console(file=io.StringIO(), width=100))
        assert write_report(tmp_path).stat().st_size > 0


@pytest.mark.parametrize("place", ["metrics.tokens", "alerts", "config.train", "environment.git"])
def test_the_page_survives_junk_as_well(tmp_path: Path, place: str) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5, curves=True)
    folder = write_run(tmp_path, 2e-3, 8, 0.4)
    content = json.loads(folder.record.read_text(encoding="utf-8"))
    outer, _, inner = place.partition(".")
    folder.metrics.write_text(
        '{"step": 1, "tokens": NaN, "train/loss": "x"}\n{"step": 2, "eval/loss": 3, "epoch": []}\n[]\n'
    )
    folder.samples.write_text('{"step": "x"}\n[]\n{"step": 1, "prompt": 3}\n{"step": 1, "prompt": [1], "answer": 5}\n')
    folder.data_report.write_text("[]")
    for junk in JUNK[::4]:
        damaged = {**content, outer: {**content[outer], inner: junk} if inner else junk}
        folder.record.write_text(json.dumps(damaged), encoding="utf-8")
        assert write_report(tmp_path).stat().st_size > 0
