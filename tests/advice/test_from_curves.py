from pathlib import Path
from typing import Any

import pytest

from sft_experiments.advice.evidence import Advice, Evidence
from sft_experiments.advice.from_curves import overfitting, plateau, rising_from_the_start, too_few_steps
from sft_experiments.results.collect import Collection
from sft_experiments.results.curves import Curves
from sft_experiments.results.rank import compare_runs
from tests.results.sweep_factory import make_run


def evidence(eval_losses: list[float], train_losses: list[float] | None = None, **changes: Any) -> Evidence:
    """One run of 200 steps, 20 of them warmup, evaluated at equal distances from step 0 on."""
    gap = 200 // (len(eval_losses) - 1)
    events: list[dict[str, Any]] = []
    for index, loss in enumerate(eval_losses):
        where = {"step": index * gap, "tokens": index * 1000, "epoch": index * gap / 100}
        train = (train_losses or eval_losses)[index]
        events += [where | {"train/loss": train}, where | {"eval/loss": loss}]
    run = make_run(Path("sweep"), 2e-3, 16, min(eval_losses), **changes)
    return Evidence(compare_runs(Collection([run], [])), run, Curves(events))


def test_eval_loss_rising_while_train_loss_falls_is_overfitting() -> None:
    advice = overfitting(evidence([3.0, 2.0, 1.5, 1.6, 1.8, 2.0], [3.0, 2.0, 1.4, 1.0, 0.7, 0.4]))
    assert advice is not None
    assert "step 80" in advice.finding
    assert "train.num_train_epochs=1" in advice.command
    assert advice.confidence == "high"


def test_a_run_whose_length_is_given_in_steps_is_changed_in_steps() -> None:
    overfitted = evidence([3.0, 2.0, 1.5, 1.6, 1.8, 2.0], [3.0, 2.0, 1.4, 1.0, 0.7, 0.4], train__max_steps=200)
    short = evidence([2.0, 1.0], steps=(40, 20), train__max_steps=40)
    for advice, words in (
        (overfitting(overfitted), "train.max_steps=80"),
        (too_few_steps(short), "train.max_steps=80"),
    ):
        assert advice is not None
        assert words in advice.command
        assert "num_train_epochs" not in advice.command


def test_without_max_steps_a_short_run_gets_twice_the_epochs() -> None:
    advice = too_few_steps(evidence([2.0, 1.0], steps=(40, 20)))
    assert advice is not None
    assert "train.num_train_epochs=4" in advice.command


@pytest.mark.parametrize(
    ("eval_losses", "train_losses"),
    [
        ([3.0, 2.0, 1.5, 1.2, 1.1, 1.05], None),  # still falling
        ([3.0, 2.0, 1.5, 1.501, 1.502, 1.503], [3.0, 2.0, 1.4, 1.3, 1.2, 1.1]),  # a rise within 1%
        ([3.0, 2.0, 1.5, 1.2, 1.1, 1.3], [3.0, 2.0, 1.4, 1.0, 0.9, 0.8]),  # one evaluation is no trend
        ([3.0, 2.0, 1.5, 1.8, 2.2, 2.6], [3.0, 2.0, 1.5, 1.8, 2.2, 2.6]),  # the train loss rises as well
    ],
)
def test_other_curves_are_not_overfitting(eval_losses: list[float], train_losses: list[float] | None) -> None:
    assert overfitting(evidence(eval_losses, train_losses)) is None


def test_eval_loss_rising_from_the_start_lowers_the_learning_rate() -> None:
    advice = rising_from_the_start(evidence([1.5, 1.7, 1.9, 2.3]))
    assert advice is not None
    assert "train.learning_rate=6.7e-4" in advice.command
    assert rising_from_the_start(evidence([1.5, 1.4, 1.9, 2.3])) is None


def test_a_flat_curve_after_warmup_doubles_the_learning_rate() -> None:
    advice = plateau(evidence([1.5, 1.499, 1.495, 1.494, 1.492, 1.49]))
    assert advice is not None
    assert "train.learning_rate=4e-3" in advice.command


def test_a_falling_curve_and_a_short_one_are_no_plateau() -> None:
    assert plateau(evidence([3.0, 2.0, 1.5, 1.3, 1.2, 1.15])) is None
    assert plateau(evidence([1.5, 1.499])) is None


def test_a_plateau_is_no_reason_to_go_where_it_was_worse() -> None:
    runs = [make_run(Path("sweep"), 2e-3, 16, 1.49), make_run(Path("sweep"), 4e-3, 16, 2.0)]
    flat = evidence([1.5, 1.499, 1.495, 1.494, 1.492, 1.49])
    assert plateau(Evidence(compare_runs(Collection(runs, [])), runs[0], flat.curves)) is None


@pytest.mark.parametrize(("total", "warmup", "expected"), [(200, 20, False), (40, 20, True), (200, 90, True)])
def test_too_few_steps_after_warmup_are_pointed_out(total: int, warmup: int, expected: bool) -> None:
    advice: Advice | None = too_few_steps(evidence([2.0, 1.0], steps=(total, warmup)))
    assert (advice is not None) is expected


def test_a_record_without_a_plan_gives_no_advice_about_steps() -> None:
    assert too_few_steps(evidence([2.0, 1.0], steps=None)) is None
