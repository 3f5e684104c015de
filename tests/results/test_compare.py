import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sft_experiments.errors import ConfigError, RunFolderError
from sft_experiments.report.on_terminal import compare, print_difference, print_ranked_table
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.compare import best_run, differences, find_run
from sft_experiments.runs.record import Status
from tests.results.sweep_factory import write_grid, write_run


def output(**options: object) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100), file


def test_a_thousand_runs_are_compared_in_under_three_seconds_of_processor_time(tmp_path: Path) -> None:
    rates = [1e-4 * 1.2**power for power in range(25)]
    write_grid(tmp_path, noise=0.01, num_seeds=10, rates=rates, batches=[8, 16, 32, 64])
    console, file = output()
    started = time.process_time()
    compare([tmp_path], console)
    assert time.process_time() - started < 3
    assert " best " in file.getvalue()


def test_several_sweeps_become_one_table(tmp_path: Path) -> None:
    write_grid(tmp_path / "coarse", batches=[16])
    write_grid(tmp_path / "fine", batches=[16], rates=[1.5e-3, 2.5e-3])
    console, file = output()
    compare([tmp_path / "coarse", tmp_path / "fine"], console)
    assert "2.5e-3" in file.getvalue()
    assert "5e-4" in file.getvalue()


def test_a_broken_record_is_named_below_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text("{", encoding="utf-8")
    console, file = output()
    print_ranked_table([tmp_path], console)
    assert "Left out" in file.getvalue()
    assert "0.5000" in file.getvalue()


def test_a_sweep_in_which_all_failed_says_so_and_gives_advice(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, None, status=Status.diverged)
    console, file = output()
    print_ranked_table([tmp_path], console)
    assert "nothing is ranked" in file.getvalue()
    assert "train.learning_rate=" in file.getvalue()


def test_commands_to_paste_stay_on_one_line(tmp_path: Path) -> None:
    file = io.StringIO()
    print_ranked_table([write_grid(tmp_path)], Console(file=file, width=60))
    commands = [line.strip() for line in file.getvalue().splitlines() if line.strip().startswith("sft ")]
    assert commands
    assert all("train." in command and not command.endswith(",") for command in commands)


def test_conditions_that_nothing_satisfies_are_an_error(tmp_path: Path) -> None:
    write_grid(tmp_path)
    with pytest.raises(RunFolderError, match="learning_rate>1"):
        compare([tmp_path], output()[0], where=["learning_rate>1"])
    with pytest.raises(ConfigError, match="--format xml"):
        compare([tmp_path], output()[0], format="xml")


def test_the_difference_of_two_runs_is_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, 0.5, fingerprints={"train_data": "zz", "validation_data": "bb", "model": "cc"})
    first, second = collect_runs([tmp_path]).runs
    assert differences(first, second) == [("train.learning_rate", 1e-3, 2e-3), ("fingerprint train_data", "aa", "zz")]
    console, file = output()
    print_difference([tmp_path], "learning_rate=0.001", "learning_rate=0.002", console)
    assert "train.learning_rate" in file.getvalue()


def test_a_run_is_found_by_path_by_name_and_by_trial_id(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1e-3, 8, 0.5)
    write_run(tmp_path, 2e-3, 8, 0.5)
    runs = collect_runs([tmp_path]).runs
    for word in (str(folder.path), folder.path.name, "learning_rate=0.001"):
        assert find_run(word, runs).folder == folder
    with pytest.raises(RunFolderError, match="names 2 runs"):
        find_run("learning_rate", runs)
    with pytest.raises(RunFolderError, match="no run is called"):
        find_run("nothing", runs)


def test_the_best_run_is_the_best_seed_of_the_best_configuration(tmp_path: Path) -> None:
    for seed, objective in ((42, 0.40), (43, 0.30), (44, 0.35)):
        write_run(tmp_path, 1e-3, 8, objective, seed)
    for seed, objective in ((42, 0.90), (43, 0.10), (44, 0.90)):
        write_run(tmp_path, 2e-3, 8, objective, seed)
    assert best_run([tmp_path]).record.objective == 0.30


def test_no_best_run_without_a_completed_one(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, None, status=Status.failed)
    with pytest.raises(RunFolderError, match="none of 1 runs completed"):
        best_run([tmp_path])


def test_comparing_imports_nothing_heavy() -> None:
    program = (
        "import sys, sft_experiments.commands.results, sft_experiments.report.page\n"
        "names = {'torch', 'transformers', 'datasets', 'trl', 'pandas', 'plotly', 'numpy', 'jinja2'}\n"
        "heavy = names & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
