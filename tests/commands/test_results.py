from pathlib import Path

import pytest

from sft_experiments.commands import run as run_command
from tests.results.sweep_factory import write_grid, write_run


def run(name: str, *words: str) -> int:
    return run_command(name, list(words))


def test_compare_prints_the_table_in_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path)
    for format, sign in (("table", "rank"), ("md", "| rank |"), ("csv", "rank,"), ("json", '"metric": "eval/loss"')):
        assert run("compare", str(tmp_path), "--format", format) == 0
        assert sign in capsys.readouterr().out


def test_compare_takes_columns_conditions_and_an_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path)
    words = ["--where", "learning_rate>=2e-3", "--columns", "learning_rate, seconds", "--sort=-learning_rate"]
    run("compare", str(tmp_path), *words, "--format", "csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("learning_rate,seconds")
    assert len(lines) == 10
    assert float(lines[1].split(",")[0]) == 8e-3


def test_compare_shows_the_difference_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path, 1e-3, 8, 0.5), write_run(tmp_path, 1e-3, 16, 0.5)
    run("compare", "--diff", str(first.path), str(second.path))
    assert "train.effective_batch_size" in capsys.readouterr().out


def test_report_prints_the_path_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path / "sweep")
    run("report", str(tmp_path / "sweep"), "--output", str(tmp_path / "page.html"))
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 0


def test_best_prints_the_folder_and_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path)
    run("best", str(tmp_path), "--path")
    path = capsys.readouterr().out.strip()
    assert Path(path).name.startswith("learning_rate=0.002,effective_batch_size=16")
    run("best", str(tmp_path))
    printed = capsys.readouterr().out
    assert "train.learning_rate=0.002" in printed
    assert f"sft train --from {path}" in printed.replace("'", "")
    assert "weights were not kept" in printed
    (Path(path) / "model").mkdir()
    (Path(path) / "model" / "config.json").touch()
    run("best", str(tmp_path))
    printed = capsys.readouterr().out
    assert f"model: {path}/model\n" in printed
    assert f"sft export {path}" in printed.replace("'", "")


def test_runs_measured_on_other_rows_are_a_table_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid(tmp_path / "ours")
    other = {"train_data": "aa", "validation_data": "zz", "model": "cc"}
    write_run(tmp_path / "theirs", 1e-3, 16, 0.01, fingerprints=other)
    assert run("compare", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "Validation data 1 of 2: ours" in shown and "Validation data 2 of 2: theirs" in shown
    assert shown.count("rank ") == 2
    assert "validation data differ" not in shown
    run("best", str(tmp_path))
    assert "measured on other validation rows" in capsys.readouterr().err


def test_the_best_rows_only_with_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path / "sweep")
    run("compare", str(tmp_path), "--top", "2", "--no-advice")
    shown = capsys.readouterr().out
    assert "13 more; --top shows them." in shown
    run("compare", str(tmp_path), "--top", "2", "--format", "csv")
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(SystemExit):
        run("compare", str(tmp_path), "--top", "0")
