from pathlib import Path
from typing import Any

from sft_experiments.results.collect import Run, collect_runs
from sft_experiments.results.settings import differing_keys, identity, short_names, shown_keys, sort_key
from sft_experiments.runs.record import Status
from tests.results.sweep_factory import make_run, write_grid, write_run


def runs_of(*folders: Path) -> list[Run]:
    return collect_runs(folders).runs


def test_only_what_differs_and_matters_gets_a_column(tmp_path: Path) -> None:
    sweep = write_grid(tmp_path / "sweep", num_seeds=2)
    assert shown_keys(runs_of(sweep)) == ["train.learning_rate", "train.effective_batch_size"]
    assert "train.seed" in differing_keys(runs_of(sweep))


def test_names_trackers_and_recommendations_never_count_as_differences(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 1e-3, 8, 0.5, 43, logger__trackers=["wandb"], model__recommended={"learning_rate": 1.0})
    assert shown_keys(runs_of(tmp_path)) == []


def test_settings_that_mirror_another_one_share_its_column(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5, model__name="small", dataset__max_length=64)
    write_run(tmp_path, 1e-3, 8, 0.4, model__name="large", dataset__max_length=128)
    assert shown_keys(runs_of(tmp_path)) == ["model.name"]


def test_a_setting_given_by_hand_keeps_its_column_even_when_it_mirrors_another(tmp_path: Path) -> None:
    words = ["scheduler=linear", "train.max_steps=10", "+scheduler.warmup_steps=4"]
    settings: dict[str, Any] = {"scheduler__name": "linear", "train__max_steps": 10, "scheduler__warmup_steps": 4}
    write_run(tmp_path, 1e-3, 8, None, status=Status.failed, overrides=words, train__weight_decay=0.1, **settings)
    write_run(tmp_path, 1e-3, 8, 0.4)
    assert set(shown_keys(runs_of(tmp_path))) == {"scheduler.name", "train.max_steps", "scheduler.warmup_steps"}


def test_a_swept_axis_keeps_its_column_even_when_it_mirrors_another(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 16, 0.4)
    assert shown_keys(runs_of(tmp_path)) == ["train.learning_rate", "train.effective_batch_size"]


def test_short_names_stay_unique() -> None:
    names = short_names(["model.name", "scheduler.name", "train.learning_rate", "train.tokens"], taken=["tokens"])
    assert names == {
        "model.name": "model.name",
        "scheduler.name": "scheduler.name",
        "train.learning_rate": "learning_rate",
        "train.tokens": "train.tokens",
    }


def test_equal_numbers_are_one_setting_and_booleans_are_not_numbers() -> None:
    assert identity(1) == identity(1.0)
    assert identity(2e-5) == identity(0.00002)
    assert identity(True) != identity(1)


def test_any_mixture_of_values_can_be_sorted() -> None:
    assert sorted(["b", None, 2, 0.5, "a", True], key=sort_key) == [0.5, 2, True, "a", "b", None]


def on_axes(name: str, rate: float, axes: dict[str, Any], **changes: Any) -> Run:
    """A run of a sweep over these axes, read from disk as any."""
    run = make_run(Path("sweep"), rate, 16, 0.5, axes=axes, scheduler__name=name, **changes)
    for axis, value in run.axes.items():
        run.values.setdefault(axis, value)
    return run


def test_a_group_that_was_swept_has_the_column_and_what_follows_from_it_none() -> None:
    runs = [on_axes(name, rate, {"experiment": name}) for name, rate in (("a", 1e-3), ("b", 1e-2))]
    assert shown_keys(runs) == ["experiment"]
    assert [run.values["experiment"] for run in runs] == ["a", "b"]


def test_keys_of_swept_mappings_and_added_keys_are_axes() -> None:
    zipped = [{"train": {"learning_rate": rate, "weight_decay": rate / 10}} for rate in (1e-3, 1e-2)]
    runs = [on_axes("cosine", rate, axes) for rate, axes in zip((1e-3, 1e-2), zipped, strict=True)]
    assert list(runs[0].axes) == ["train.learning_rate", "train.weight_decay"]
    assert shown_keys(runs)[0] == "train.learning_rate"
    added = [on_axes("cosine", rate, {"+train.learning_rate": rate}) for rate in (1e-3, 1e-2)]
    assert shown_keys(added) == ["train.learning_rate"]


def test_cells_are_the_same_whether_their_group_was_swept_or_typed() -> None:
    swept, typed = on_axes("linear", 1e-3, {"scheduler": "linear"}), on_axes("linear", 1e-3, {})
    assert swept.deciding == typed.deciding
