import io
from pathlib import Path

import pytest
from rich.console import Console

from sft_experiments.errors import ConfigError
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.fields import filter_runs
from sft_experiments.results.rank import compare_runs
from sft_experiments.results.rows import build_table
from sft_experiments.results.table import print_table
from sft_experiments.runs.record import Failure, Status
from tests.results.sweep_factory import write_grid, write_run


def printed(folder: Path, width: int, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(build_table(compare_runs(collect_runs([folder])), **options), console)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_screen_and_breaks_no_number(tmp_path: Path, width: int) -> None:
    write_grid(tmp_path, noise=0.01, num_seeds=3)
    write_run(tmp_path, 0.05, 16, None, status=Status.diverged, alerts=[{"rule": "non_finite", "step": 3}])
    lines = printed(tmp_path, width).splitlines()
    assert max(len(line) for line in lines) <= width
    best = next(line for line in lines if " best " in line and line.strip().startswith("1"))
    assert best.split()[:3] == ["1", "2e-3", best.split()[2]]
    assert len(best.split()[3]) == len("0.3020")


def test_a_wider_screen_shows_more_and_a_narrow_one_says_what_it_hides(tmp_path: Path) -> None:
    write_grid(tmp_path, noise=0.01, num_seeds=3)
    assert "Hidden at this width" in printed(tmp_path, 60)
    assert "Hidden" not in printed(tmp_path, 120)
    assert "per second" not in printed(tmp_path, 60)


def test_failures_are_listed_below_with_their_class_and_reason(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, None, status=Status.oom, failure=Failure("E", "loss is nan at step 3" + " x" * 200))
    ranked, _, rest = printed(tmp_path, 100).partition("Not ranked")
    assert "oom" not in ranked
    assert "oom" in rest
    assert "2e-3" in rest  # a long reason takes no room from the settings
    assert "loss is nan at step 3" in rest


def test_the_reason_of_a_failure_is_wrapped_and_not_cut(tmp_path: Path) -> None:
    message = "the template ends no turn, so the model would not learn to stop; give model.chat_template or a tokenizer"
    write_run(tmp_path, 2e-3, 8, None, status=Status.failed, failure=Failure("DataError", message))
    lines = printed(tmp_path, 80).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert f"DataError: {message}" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("status", [Status.pending, Status.pruned])
def test_where_nothing_explains_a_status_nothing_is_shown(tmp_path: Path, status: Status) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    folder = write_run(tmp_path, 2e-3, 8, None, status=status)
    _, _, rest = printed(tmp_path, 200).partition("Not ranked")
    assert status.value in rest
    assert folder.path.name not in rest


def test_ties_with_the_best_are_marked(tmp_path: Path) -> None:
    write_grid(tmp_path, lambda _rate, _batch: 0.5, noise=0.01, num_seeds=3, batches=[8])
    text = printed(tmp_path, 120)
    assert text.count("≈ best") >= 3
    assert "cannot be told from the best" in text


def test_one_seed_each_is_said_to_be_no_ranking(tmp_path: Path) -> None:
    assert "the noise is unknown" in printed(write_grid(tmp_path), 120)


def test_markup_in_names_is_printed_as_it_is(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5, model__name="[red]x[/red]")
    write_run(tmp_path, 1e-3, 8, 0.4, model__name="y")
    assert "[red]x[/red]" in printed(tmp_path, 120)


def test_rows_can_be_sorted_by_any_column_setting_or_fact(tmp_path: Path) -> None:
    comparison = compare_runs(collect_runs([write_grid(tmp_path)]))
    rates = [cell.values["train.learning_rate"] for cell in build_table(comparison, sort="-learning_rate").cells]
    assert rates == sorted(rates, reverse=True)
    assert build_table(comparison, sort="seconds").cells[0].values["train.effective_batch_size"] == 32
    assert build_table(comparison, sort="train.weight_decay").cells


def test_columns_can_be_chosen_by_short_and_full_names(tmp_path: Path) -> None:
    comparison = compare_runs(collect_runs([write_grid(tmp_path)]))
    columns = build_table(comparison, ["objective", "train.weight_decay", "total_steps", "folder"]).columns
    values = [column.text(column.value(comparison.cells[0])) for column in columns]
    assert values[:3] == ["0.3000", "0.01", "200"]


def test_an_unknown_column_is_an_error_with_the_nearest_names(tmp_path: Path) -> None:
    comparison = compare_runs(collect_runs([write_grid(tmp_path)]))
    with pytest.raises(ConfigError, match="learning_rate"):
        build_table(comparison, ["lerning_rate"])


@pytest.mark.parametrize(
    ("condition", "count"),
    [("learning_rate>=2e-3", 9), ("learning_rate=0.002", 3), ("train.effective_batch_size<16", 5),
     ("status=completed", 15), ("status!=completed", 0), ("folder~=32", 5), ("folder~size=32", 5),
     ("model.name=tiny", 15), ("objective<0.31", 3), ("trial_id!=x", 15)],
)  # fmt: skip
def test_conditions_filter_runs(tmp_path: Path, condition: str, count: int) -> None:
    runs = collect_runs([write_grid(tmp_path)]).runs
    assert len(filter_runs(runs, [condition])) == count


@pytest.mark.parametrize("condition", ["", "learning_rate", ">3", "lerning_rate>3"])
def test_a_condition_that_means_nothing_is_refused(tmp_path: Path, condition: str) -> None:
    runs = collect_runs([write_grid(tmp_path)]).runs
    with pytest.raises(ConfigError):
        filter_runs(runs, [condition])
