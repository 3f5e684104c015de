import csv
import io
import json
import math
from pathlib import Path

from sft_experiments.results.collect import collect_runs
from sft_experiments.results.rank import compare_runs
from sft_experiments.results.rows import Table, build_table
from sft_experiments.results.text_formats import table_rows, to_csv, to_json, to_markdown
from sft_experiments.runs.record import Status
from tests.results.sweep_factory import write_grid, write_run


def table_of(folder: Path) -> Table:
    return build_table(compare_runs(collect_runs([folder])))


def test_json_holds_full_precision_folders_and_what_is_not_ranked(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.123456789012)
    write_run(tmp_path, 2e-3, 8, math.nan)
    content = json.loads(to_json(table_of(tmp_path)), parse_constant=lambda name: f"not JSON: {name}")
    assert content["rows"][0]["eval/loss"] == 0.123456789012
    assert content["rows"][0]["learning_rate"] == 1e-3
    assert Path(content["rows"][0]["folders"][0]).is_dir()
    assert content["unranked"][0]["status"] == "completed"


def test_csv_has_one_line_per_configuration_and_per_unranked_run(tmp_path: Path) -> None:
    write_grid(tmp_path, num_seeds=2, noise=0.01)
    write_run(tmp_path, 0.5, 8, None, status=Status.failed)
    rows = list(csv.DictReader(io.StringIO(to_csv(table_of(tmp_path)))))
    assert len(rows) == 16
    assert float(rows[0]["learning_rate"]) == 2e-3
    assert (rows[-1]["status"], rows[-1]["rank"]) == ("failed", "")


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3, 8, 0.5, model__name="a|b\n<b>c</b>")
    write_run(tmp_path, 1e-3, 8, 0.4, model__name="plain")
    lines = to_markdown(table_of(tmp_path)).splitlines()
    row = next(line for line in lines if "a\\|b" in line)
    assert "<b>" not in row
    assert row.replace("\\|", "").count("|") == lines[0].count("|")


def test_plain_rows_are_offered_to_trackers(tmp_path: Path) -> None:
    headers, rows = table_rows(compare_runs(collect_runs([write_grid(tmp_path)])))
    best = dict(zip(headers, rows[0], strict=True))
    assert (best["learning_rate"], best["effective_batch_size"], best["eval/loss"]) == (2e-3, 16, 0.3)
