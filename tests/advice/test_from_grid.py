"""Advice from synthetic sweeps whose optimum and noise are known: right where it is sure, silent where it cannot be."""

from pathlib import Path
from random import Random

import pytest

from sft_experiments.advice.advise import advise
from sft_experiments.advice.evidence import Advice
from sft_experiments.results.collect import Collection
from sft_experiments.results.rank import Comparison, compare_runs
from sft_experiments.runs.record import Status
from tests.results.sweep_factory import Surface, bowl, compare_grid, grid_objectives, make_run

NUM_SWEEPS = 200


def found(comparison: Comparison, rule: str) -> list[Advice]:
    return [advice for advice in advise(comparison) if advice.rule == rule]


def edges(comparison: Comparison) -> dict[str, str]:
    """What the surer edge advice says: axis -> end."""
    sure = [advice for advice in found(comparison, "edge") if advice.confidence != "low"]
    return {
        advice.finding.split("The best ")[1].split(",")[0]: "largest" if "largest" in advice.finding else "smallest"
        for advice in sure
    }


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize(("optimum", "end"), [(5e-2, "largest"), (8e-5, "smallest")])
def test_an_optimum_beyond_the_grid_is_sought_on_the_right_side(optimum: float, end: str, num_seeds: int) -> None:
    random = Random(11)
    right = sum(
        edges(compare_grid(bowl(optimum), noise=0.02, num_seeds=num_seeds, random=random)).get("learning_rate") == end
        for _ in range(NUM_SWEEPS)
    )
    assert right >= 0.95 * NUM_SWEEPS


@pytest.mark.parametrize(("best_batch", "end"), [(128, "largest"), (2, "smallest")])
def test_the_edge_of_the_batch_axis_is_found_as_well(best_batch: int, end: str) -> None:
    random, surface = Random(12), bowl(best_batch=best_batch, steepness=2.0)
    right = sum(
        edges(compare_grid(surface, noise=0.01, num_seeds=3, random=random)).get("effective_batch_size") == end
        for _ in range(NUM_SWEEPS)
    )
    assert right >= 0.95 * NUM_SWEEPS


@pytest.mark.parametrize("surface", [bowl(2e-3), lambda _rate, _batch: 0.5], ids=["optimum inside", "flat"])
def test_no_edge_is_claimed_surely_where_none_is(surface: Surface) -> None:
    random = Random(13)
    claimed = [edges(compare_grid(surface, noise=0.02, num_seeds=3, random=random)) for _ in range(NUM_SWEEPS)]
    assert sum(bool(claim) for claim in claimed) <= 0.05 * NUM_SWEEPS


def test_differences_below_the_spread_are_called_noise() -> None:
    random, surface = Random(14), bowl(steepness=0.002)
    called = sum(
        bool(found(compare_grid(surface, noise=0.05, num_seeds=3, random=random), "noise")) for _ in range(NUM_SWEEPS)
    )
    assert called >= 0.95 * NUM_SWEEPS


def test_clear_differences_are_not_called_noise() -> None:
    assert found(compare_grid(bowl(), noise=1e-5, num_seeds=3), "noise") == []


def test_unmeasured_noise_asks_for_seeds_of_the_leaders_only() -> None:
    (advice,) = found(compare_grid(bowl()), "noise")
    assert advice.command.endswith("train.learning_rate=2e-3 train.effective_batch_size=8,16,32 sweep.num_seeds=3")
    assert "3 seeds of the leading configurations," in advice.action


def test_the_noise_advice_says_when_its_command_runs_more_than_the_leaders() -> None:
    losses = {(1e-3, 8): 0.1, (2e-3, 16): 0.2, (1e-3, 16): 0.3, (2e-3, 32): 0.9, (1e-3, 32): 1.0, (2e-3, 8): 1.1}
    runs = [make_run(Path("sweep"), rate, batch, loss) for (rate, batch), loss in losses.items()]
    (advice,) = found(compare_runs(Collection(runs, [])), "noise")
    assert "train.learning_rate=1e-3,2e-3 train.effective_batch_size=8,16 " in advice.command
    assert "the 4 combinations of the 3 leading configurations' values" in advice.action


def test_the_extension_keeps_the_old_values_and_the_sweeps_own_settings() -> None:
    (advice,) = found(compare_grid(bowl(5e-2)), "edge")
    assert advice.command == (
        "sft train -m model=tiny dataset=demo train.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3,0.02"
        " train.effective_batch_size=8,16,32"
    )


def test_an_axis_that_is_a_whole_group_stays_one_in_commands() -> None:
    runs = [
        make_run(Path("sweep"), 1e-3, 8, 0.5 + index / 10, scheduler__name=name, axes={"scheduler": name})
        for index, name in enumerate(["cosine", "linear"])
    ]
    (advice,) = found(compare_runs(Collection(runs, [])), "noise")
    assert advice.command == "sft train -m model=tiny dataset=demo scheduler=cosine,linear sweep.num_seeds=3"


@pytest.mark.parametrize("status", [Status.diverged, Status.pruned, Status.running])
def test_an_edge_beyond_which_something_was_tried_is_no_edge(status: Status) -> None:
    runs = [make_run(Path("sweep"), *trial) for trial in grid_objectives(bowl(5e-2), batches=[16])]
    runs.append(make_run(Path("sweep"), 2e-2, 16, None, status=status))
    assert found(compare_runs(Collection(runs, [])), "edge") == []


def test_what_was_stopped_early_is_on_the_inner_side_of_an_edge() -> None:
    runs = [make_run(Path("sweep"), rate, 16, None, status=Status.pruned) for rate in (5e-4, 1e-3)]
    runs.append(make_run(Path("sweep"), 2e-3, 16, 0.4))
    (advice,) = found(compare_runs(Collection(runs, [])), "edge")
    assert advice.finding == "The best learning_rate, 2e-3, is the largest tried."
    assert "5e-4: stopped early, 1e-3: stopped early, 2e-3: 0.4000" in advice.evidence
    assert "train.learning_rate=5e-4,1e-3,2e-3,5e-3" in advice.command
    assert advice.confidence == "low"


def test_equal_batch_sizes_lead_to_the_faster_one() -> None:
    comparison = compare_grid(
        bowl(steepness=0.4, best_batch=16), noise=0.03, num_seeds=4, rates=[2e-3], random=Random(2)
    )
    (advice,) = found(comparison, "batch_size")
    assert "effective_batch_size=32" in advice.action
    assert advice.confidence != "high"


def test_batch_sizes_are_not_called_equal_without_measured_noise() -> None:
    assert found(compare_grid(lambda _rate, _batch: 0.5), "batch_size") == []


def test_the_fitted_learning_rate_is_offered_with_its_interval() -> None:
    (advice,) = found(compare_grid(bowl(2.8e-3), noise=0.005, num_seeds=3), "optimum")
    assert "95% interval" in advice.evidence


def test_the_surest_advice_comes_first() -> None:
    order = ["high", "medium", "low"]
    ranks = [order.index(advice.confidence) for advice in advise(compare_grid(bowl(), noise=0.02, num_seeds=3))]
    assert ranks == sorted(ranks)


def test_when_all_diverged_the_learning_rate_comes_down() -> None:
    runs = [make_run(Path("sweep"), rate, 8, None, status=Status.diverged) for rate in (0.03, 0.3)]
    (advice,) = advise(compare_runs(Collection(runs, [])))
    assert "train.learning_rate=0.01" in advice.command


def test_a_larger_batch_that_saw_more_tokens_is_no_sure_edge() -> None:
    runs = [
        make_run(Path("sweep"), 2e-3, batch, 1 / batch + seed * 1e-4, seed, metrics={"tokens": 1000 * batch})
        for batch in (4, 8, 16)
        for seed in (1, 2)
    ]
    (edge,) = [found for found in advise(compare_runs(Collection(runs, []))) if found.rule == "edge"]
    assert "fixed number of steps a larger batch is also trained on more tokens, 4k to 16k" in edge.evidence
    assert edge.confidence == "low" and "fixed epochs" not in edge.evidence


def test_cells_are_called_kept_only_where_their_launch_puts_its_runs(tmp_path: Path) -> None:
    def action(*folders: Path) -> str:
        trials = [(folder, batch) for folder in folders for batch in (4, 8, 16)]
        runs = [make_run(folder, 2e-3, batch, 1 / batch) for folder, batch in trials]
        for run in runs:
            run.record.launched_in = str(tmp_path)
        return next(found.action for found in advise(compare_runs(Collection(runs, []))) if found.rule == "edge")

    assert "finished cells are kept" in action(tmp_path / "outputs/demo-1a2b")
    assert "finished cells are kept" in action(tmp_path / "outputs/older/renamed")
    assert "kept" not in action(tmp_path / "outputs/demo-1a2b", tmp_path / "copy of it")
