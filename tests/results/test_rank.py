import math
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sft_experiments.advice.advise import advise
from sft_experiments.results.collect import Collection, collect_runs
from sft_experiments.results.rank import Comparison, compare_runs, why_unranked
from sft_experiments.runs.record import Status
from tests.results.sweep_factory import bowl, compare_grid, make_run, write_grid, write_run


def comparison_of(*folders: Path) -> Comparison:
    return compare_runs(collect_runs(folders))


def test_seeds_of_a_configuration_become_one_row(tmp_path: Path) -> None:
    for seed, objective in ((42, 0.50), (43, 0.52), (44, 0.54)):
        write_run(tmp_path, 1e-3, 8, objective, seed)
    write_run(tmp_path, 2e-3, 8, 0.4)
    first, second = comparison_of(tmp_path).cells
    assert (first.mean, first.spread, len(first.runs)) == (0.4, None, 1)
    assert second.mean == pytest.approx(0.52)
    assert second.spread == pytest.approx(0.02)


def test_the_objective_direction_decides_who_is_best(tmp_path: Path) -> None:
    for rate, score in ((1e-3, 0.9), (2e-3, 0.7)):
        write_run(tmp_path, rate, 8, score, objective_metric="eval/exact_match", objective_direction="maximize")
    assert [cell.mean for cell in comparison_of(tmp_path).cells] == [0.9, 0.7]


def test_equal_objectives_share_a_rank_and_the_lower_eval_loss_comes_first(tmp_path: Path) -> None:
    exact: dict[str, Any] = {"objective_metric": "eval/exact_match", "objective_direction": "maximize"}
    for rate, score, loss in ((1e-3, 0.5, 2.0), (2e-3, 0.5, 1.0), (4e-3, 0.1, 0.5), (8e-3, 0.1, 0.4)):
        write_run(tmp_path, rate, 8, score, metrics={"eval/loss": loss}, **exact)
    comparison = comparison_of(tmp_path)
    assert [(cell.rank, cell.values["train.learning_rate"]) for cell in comparison.cells] == [
        *((1, 2e-3), (1, 1e-3)),
        *((3, 8e-3), (3, 4e-3)),
    ]
    assert any("2 of 4 configurations share the best eval/exact_match, 0.5" in note for note in comparison.notes)


def test_an_objective_at_its_floor_is_said_and_gives_no_advice_on_edges_or_seeds(tmp_path: Path) -> None:
    exact: dict[str, Any] = {"objective_metric": "eval/exact_match", "objective_direction": "maximize"}
    for rate in (1e-3, 2e-3, 4e-3):
        write_run(tmp_path, rate, 8, 0.0, metrics={"eval/loss": rate}, **exact)
    comparison = comparison_of(tmp_path)
    assert any("all 3 configurations share the best eval/exact_match, 0:" in note for note in comparison.notes)
    assert not {advice.rule for advice in advise(comparison)} & {"edge", "noise"}


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.completed])
def test_only_completed_runs_are_ranked(tmp_path: Path, status: Status) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, 0.0, status=status)
    comparison = comparison_of(tmp_path)
    assert [cell.mean for cell in comparison.cells] == [0.5]
    assert [run.record.status for run in comparison.unranked] == [status]


@pytest.mark.parametrize("objective", [None, math.nan, -math.inf])
def test_a_dead_run_that_says_completed_never_wins(tmp_path: Path, objective: float | None) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, objective)
    comparison = comparison_of(tmp_path)
    assert len(comparison.cells) == 1
    assert "not a finite number" in why_unranked(comparison.unranked[0], comparison.metric, comparison.direction)


def test_runs_with_another_objective_are_listed_not_ranked(tmp_path: Path) -> None:
    write_grid(tmp_path)
    write_run(tmp_path, 0.1, 8, 0.01, objective_metric="eval/exact_match")
    comparison = comparison_of(tmp_path)
    assert comparison.metric == "eval/loss"
    assert "eval/exact_match" in why_unranked(comparison.unranked[0], comparison.metric, comparison.direction)


def test_the_same_seed_twice_is_no_second_opinion(tmp_path: Path) -> None:
    write_run(tmp_path / "monday", 1e-3, 8, 0.5, finished_at="2026-01-05T00:00:00Z")
    write_run(tmp_path / "tuesday", 1e-3, 8, 0.5, finished_at="2026-01-06T00:00:00Z")
    comparison = comparison_of(tmp_path)
    assert [len(cell.runs) for cell in comparison.cells] == [1]
    assert "tuesday" in str(comparison.cells[0].runs[0].folder.path)
    assert any("repeat a seed" in note for note in comparison.notes)


def test_other_data_make_another_row_and_a_note(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1e-3, 8, 0.5)
    write_run(tmp_path / "b", 1e-3, 8, 0.6, fingerprints={"validation_data": "other"})
    comparison = comparison_of(tmp_path)
    assert len(comparison.cells) == 2
    assert any("validation data differ" in note for note in comparison.notes)


def test_a_failed_seed_is_counted_beside_its_configuration(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 1e-3, 8, None, 43, Status.diverged, fingerprints={})
    assert [run.record.status for run in comparison_of(tmp_path).cells[0].incomplete] == [Status.diverged]


def test_without_repeated_seeds_nothing_is_claimed_about_noise(tmp_path: Path) -> None:
    comparison = comparison_of(write_grid(tmp_path))
    assert comparison.noise is None
    assert {cell.within_noise for cell in comparison.cells[1:]} == {None}


def test_differences_far_above_the_noise_are_told_apart() -> None:
    comparison = compare_grid(noise=0.001, num_seeds=3, batches=[16])
    assert [cell.within_noise for cell in comparison.cells] == [True, False, False, False, False]


def test_equal_configurations_are_called_worse_in_at_most_one_sweep_in_twenty() -> None:
    """The true difference is zero, so any "worse than the best" is an error: 5% of 400, and three standard errors."""
    errors, random = 0, Random(1)
    for _ in range(400):
        comparison = compare_grid(lambda _rate, _batch: 0.5, noise=0.02, num_seeds=3, random=random)
        errors += any(cell.within_noise is False for cell in comparison.cells)
    assert errors <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_a_noisier_configuration_is_judged_by_its_own_spread(tmp_path: Path) -> None:
    """Six quiet configurations keep the pooled spread low; by that alone the noisy one would be called worse."""
    for seed in (42, 43, 44):
        for index, rate in enumerate((1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3)):
            write_run(tmp_path, rate, 8, 0.5 + 0.001 * (index + seed - 43), seed)
        write_run(tmp_path, 8e-3, 8, 1.0 + 0.3 * (seed - 43), seed)
    comparison = comparison_of(tmp_path)
    assert comparison.noise is not None
    assert comparison.noise.standard_deviation < 0.15
    assert comparison.cells[-1].within_noise is True


def test_ranking_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    orders = []
    for place in ("a", "z"):
        write_grid(tmp_path / place / "sweep", bowl(), 0.01, 2, random=Random(5))
        orders.append([cell.name for cell in comparison_of(tmp_path / place).cells])
    assert orders[0] == orders[1]


def test_runs_of_different_tokenizers_are_ranked_per_answer_byte_and_that_is_said(tmp_path: Path) -> None:
    per_byte = {1e-3: 0.9, 2e-3: 0.2}
    for (rate, nats), tokenizer, loss in zip(per_byte.items(), ("one", "two"), (0.4, 0.8), strict=True):
        prints = {"validation_data": "bb", "tokenizer": tokenizer}
        write_run(tmp_path, rate, 8, loss, fingerprints=prints, metrics={"eval/nats_per_byte": nats})
    comparison = compare_runs(collect_runs([tmp_path]))
    assert comparison.metric == "eval/nats_per_byte"
    assert [cell.mean for cell in comparison.cells] == [0.2, 0.9]  # the loss per token would rank them the other way
    assert any("ranked by eval/nats_per_byte" in note for note in comparison.notes)


def test_runs_of_one_tokenizer_keep_their_objective(tmp_path: Path) -> None:
    for rate, loss in ((1e-3, 0.4), (2e-3, 0.8)):
        write_run(tmp_path, rate, 8, loss, metrics={"eval/nats_per_byte": 1 - loss})
    comparison = compare_runs(collect_runs([tmp_path]))
    assert (comparison.metric, [cell.mean for cell in comparison.cells]) == ("eval/loss", [0.4, 0.8])


def test_the_noise_of_short_trainings_is_not_that_of_long_ones(tmp_path: Path) -> None:
    random = Random(0)
    few: dict[str, Any] = {"metrics": {"tokens": 1000}, "train__max_steps": 9}
    for seed in range(4):
        for rate in (1e-3, 2e-3):
            write_run(tmp_path / "long", rate, 16, 0.06 + rate + random.gauss(0, 1e-4), seed)
            write_run(tmp_path / "short", rate, 16, random.uniform(0.28, 1.07), seed, **few)
    together = compare_runs(collect_runs([tmp_path]))
    alone = compare_runs(collect_runs([tmp_path / "long"]))
    assert together.noise == alone.noise
    assert [cell.within_noise for cell in together.cells] == [True, False, None, None]
    assert any("2 configuration(s) were trained on another number of tokens" in note for note in together.notes)


def test_a_run_that_stops_by_itself_is_judged_whatever_it_used() -> None:
    patience: dict[str, Any] = {"train__early_stopping_patience": 2}
    runs = [
        make_run(Path("sweep"), 1e-3 * cell, 16, cell + 0.01 * seed, seed, metrics={"tokens": 1000 * cell}, **patience)
        for cell in (1, 2)
        for seed in range(3)
    ]
    assert [cell.within_noise for cell in compare_runs(Collection(runs, [])).cells] == [True, False]
