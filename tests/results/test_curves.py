import json
from pathlib import Path

import pytest

from sft_experiments.results.curves import Curves, points_per_run, read_curves, thinned


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_train_and_eval_events_of_one_step_both_count(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m", {"step": 5, "tokens": 50, "train/loss": 2.0}, {"step": 5, "tokens": 50, "eval/loss": 3.0}
    )
    curves = read_curves(path)
    assert [point.value for point in curves.series("train/loss")] == [2.0]
    assert [(point.step, point.tokens, point.value) for point in curves.series("eval/loss")] == [(5, 50.0, 3.0)]


def test_half_a_line_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "m", {"step": 1, "train/loss": 2.0}, "[1]", '{"no": "step"}', '{"step": 2, "train/lo')
    assert len(read_curves(path).events) == 1


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m", {"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.9}, {"step": 1, "train/loss": 1.8}
    )
    assert [point.value for point in read_curves(path).series("train/loss")] == [1.8, 1.9]


def test_values_that_are_no_numbers_are_no_points(tmp_path: Path) -> None:
    path = written(tmp_path / "m", '{"step": 1, "train/loss": NaN}', '{"step": 2, "train/loss": null}')
    assert read_curves(path).series("train/loss") == []


def test_a_missing_file_is_an_empty_curve(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "none").events == []


@pytest.mark.parametrize(("step", "tokens"), [(0, 0), (5, 50), (10, 100), (15, 200), (99, 300)])
def test_tokens_are_read_off_between_events(step: int, tokens: float) -> None:
    curves = Curves([{"step": 10, "tokens": 100}, {"step": 20, "tokens": 300}])
    assert curves.tokens_at(step) == tokens


def test_thinning_keeps_ends_order_and_every_spike() -> None:
    events = [{"step": step, "train/loss": 1.0} for step in range(5000)]
    events[1234]["train/loss"] = 9.0
    events[4321]["train/loss"] = 0.1
    kept = [event["step"] for event in thinned(events, 200, ["train/loss"])]
    assert len(kept) <= 202
    assert kept == sorted(kept)
    assert {0, 1234, 4321, 4999} <= set(kept)


def test_short_curves_are_not_touched() -> None:
    events = [{"step": step, "train/loss": 1.0} for step in range(100)]
    assert thinned(events, points_per_run(100), ["train/loss"]) == events
