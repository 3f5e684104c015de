"""What a search may choose from, and what random search draws from it."""

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.errors import ConfigError
from sft_experiments.sweep.cells import Cell
from sft_experiments.sweep.space import Interval, Listed, Space, random_cells, search_space


def space(*overrides: str) -> Space:
    with composed(["-m", *overrides]) as composition:
        return search_space(composition)


def drawn(*overrides: str) -> list[Cell]:
    with composed(["-m", *overrides]) as composition:
        return list(random_cells(composition))


def test_the_default_space_follows_the_size_of_the_model_and_lora() -> None:
    found = space("sweep=random", "model=llama3_1_8b", "peft=lora").dimensions
    assert found["train.learning_rate"] == Interval(1e-4, 5e-4, log=True)
    assert found["train.effective_batch_size"] == Listed(("32", "48", "64"))


def test_the_command_line_replaces_a_dimension_and_adds_others() -> None:
    found = space(
        "sweep=random", "train.learning_rate=tag(log,interval(1e-5,1e-3))", "train.effective_batch_size=16",
        "scheduler=cosine,linear", "model.config.num_hidden_layers=int(interval(1,4))",
    )  # fmt: skip
    assert found.fixed == ["sweep=random", "train.effective_batch_size=16"]
    assert found.dimensions == {
        "train.learning_rate": Interval(1e-5, 1e-3, log=True),
        "scheduler": Listed(("cosine", "linear")),
        "model.config.num_hidden_layers": Interval(1, 4, whole=True),
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep=none"], "nothing to search"),
        (["train.learning_rate=interval(1,1)"], "train.learning_rate: the interval from 1.* to 1.* is empty"),
        (["train.learning_rate=tag(log,interval(0,1))"], "must start above 0"),
        (["+sweep.axes={train.seed:7}"], "sweep.axes: train.seed must have a list of values"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(*overrides)


def test_random_cells_are_drawn_by_the_seed_and_more_of_them_keep_the_first() -> None:
    few = drawn("sweep=random", "sweep.num_trials=5")
    assert few == drawn("sweep=random", "sweep.num_trials=5")
    assert drawn("sweep=random", "sweep.num_trials=8")[:5] != few  # the override itself is part of a cell
    assert [cell.overrides[2:] for cell in drawn("sweep=random", "sweep.num_trials=8")][:5] == [
        cell.overrides[2:] for cell in few
    ]
    assert [cell.overrides[3:] for cell in drawn("sweep=random", "sweep.num_trials=5", "sweep.search_seed=1")] != [
        cell.overrides[2:] for cell in few
    ]


def test_draws_are_logarithmic_and_inside() -> None:
    cells = drawn("sweep=random", "sweep.num_trials=200", "train.learning_rate=tag(log,interval(1e-6,1e-2))",
                  "train.effective_batch_size=8")  # fmt: skip
    rates = [float(cell.overrides[-1].split("=")[1]) for cell in cells]
    assert all(1e-6 <= rate <= 1e-2 for rate in rates)
    assert 70 < sum(rate < 1e-4 for rate in rates) < 130  # half of them below the middle in factors


def test_a_small_space_ends_when_every_point_was_drawn() -> None:
    cells = drawn("sweep=random", "train.learning_rate=1e-3,2e-3", "train.effective_batch_size=8,16")
    assert len(cells) == 4


def test_seeds_replicate_every_point() -> None:
    cells = drawn("sweep=random", "sweep.num_trials=3", "sweep.num_seeds=2")
    assert len(cells) == 6
    assert cells[0].axes == ["train.learning_rate", "train.effective_batch_size", "train.seed"]


def test_whole_numbers_are_drawn_alike() -> None:
    cells = drawn("sweep=random", "sweep.num_trials=300", "model.config.num_hidden_layers=int(interval(1,3))",
                  "train.learning_rate=interval(0,1)", "train.effective_batch_size=8")  # fmt: skip
    layers = [next(item for item in cell.overrides if "num_hidden_layers" in item)[-1] for cell in cells]
    assert all(70 < layers.count(number) < 130 for number in "123")


@pytest.mark.parametrize("number", [0, -1])
def test_no_points_at_all_are_refused(number: int) -> None:
    with pytest.raises(ConfigError, match=f"sweep.num_trials={number}: must be at least 1"):
        drawn("sweep=random", f"sweep.num_trials={number}")
