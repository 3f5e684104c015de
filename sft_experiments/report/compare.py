"""Compare runs: collect, rank, lay out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sft_experiments.errors import ConfigError, RunFolderError
from sft_experiments.report.advice import advise
from sft_experiments.report.advice_text import print_advice
from sft_experiments.report.collect import collect_runs
from sft_experiments.report.diff import diff_table, find_run
from sft_experiments.report.fields import filter_runs
from sft_experiments.report.formats import to_csv, to_json, to_markdown
from sft_experiments.report.rank import Comparison, compare_runs
from sft_experiments.report.rows import build_table
from sft_experiments.report.table import print_table

TEXT_FORMATS = {"md": to_markdown, "csv": to_csv, "json": to_json}


def load_comparison(directories: Sequence[Path], where: Sequence[str] = ()) -> Comparison:
    """The comparison of the runs below ``directories`` that satisfy ``where``.

    Raises ``RunFolderError`` when there are none, ``ConfigError`` for a condition that names nothing.
    """
    collection = collect_runs(directories)
    runs = filter_runs(collection.runs, where)
    if not runs:
        reason = f"no run satisfies {' and '.join(where)}" if where and collection.runs else "no record is readable"
        raise RunFolderError("; ".join([reason, *collection.problems]))
    return compare_runs(replace(collection, runs=runs))


def compare(
    directories: Sequence[Path],
    console: Console,
    sort: str | None = None,
    columns: Sequence[str] = (),
    where: Sequence[str] = (),
    format: str = "table",
    with_advice: bool = True,
) -> None:
    """Print the ranked table of all runs below ``directories``, in one of the formats table, md, csv and json."""
    if format != "table" and format not in TEXT_FORMATS:
        raise ConfigError(f"--format {format}: choose one of table, {', '.join(TEXT_FORMATS)}")
    comparison = load_comparison(directories, where)
    table = build_table(comparison, columns, sort)
    if format != "table":
        console.file.write(TEXT_FORMATS[format](table))
        return
    print_table(table, console)
    if with_advice:
        print_advice(advise(comparison), console)


def print_ranked_table(directories: Sequence[Path], console: Console) -> None:
    """The table and the advice, as a sweep prints them when it ends."""
    compare(directories, console)


def print_difference(directories: Sequence[Path], first: str, second: str, console: Console) -> None:
    """What differs between two runs, given by path or by a part of their folder's name."""
    runs = collect_runs(directories).runs if directories else []
    console.print(diff_table(find_run(first, runs), find_run(second, runs)))
