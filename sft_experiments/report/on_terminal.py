"""The ranked table with its advice on the terminal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sft_experiments.advice.advise import advise
from sft_experiments.advice.evidence import Advice
from sft_experiments.errors import ConfigError
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.compare import diff_table, find_run, load_comparison, load_comparisons
from sft_experiments.results.rank import Comparison
from sft_experiments.results.rows import build_table
from sft_experiments.results.table import print_table
from sft_experiments.results.text_formats import to_csv, to_json, to_markdown


def print_advice(found: Sequence[Advice], console: Console) -> None:
    """Each piece of advice: what, why, how sure, and the command on a line of its own that is never wrapped."""
    for advice in found:
        console.print()
        console.print(Text.assemble((advice.finding, "bold"), (f"  [confidence {advice.confidence}]", "dim")))
        console.print(Padding(Text(advice.evidence), (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(advice.action), (0, 0, 0, 2), expand=False))
        console.print(Text(f"    {advice.command}", style="cyan"), soft_wrap=True)


TEXT_FORMATS = {"md": to_markdown, "csv": to_csv, "json": to_json}


def compare(
    directories: Sequence[Path],
    console: Console,
    sort: str | None = None,
    columns: Sequence[str] = (),
    where: Sequence[str] = (),
    format: str = "table",
    with_advice: bool = True,
    top: int | None = None,
) -> None:
    """Print the ranked table of all runs below ``directories``, in one of the formats table, md, csv and json.

    On a terminal runs that were measured on different validation data are a table each, with its own advice. ``top``:
    so many rows of each table.
    """
    if format != "table" and format not in TEXT_FORMATS:
        raise ConfigError(f"--format {format}: choose one of table, {', '.join(TEXT_FORMATS)}")
    if format != "table":
        table = build_table(load_comparison(directories, where), columns, sort)
        console.file.write(TEXT_FORMATS[format](replace(table, cells=table.cells[:top])))
        return
    comparisons = load_comparisons(directories, where)
    for number, comparison in enumerate(comparisons, start=1):
        if len(comparisons) > 1:
            _print_heading(comparison, f"{number} of {len(comparisons)}", console)
        table = build_table(comparison, columns, sort)
        print_table(replace(table, cells=table.cells[:top]), console)
        if top is not None and len(table.cells) > top:
            console.print(f"{len(table.cells) - top} more; --top shows them.")
        if with_advice:
            print_advice(advise(comparison), console)


def _print_heading(comparison: Comparison, number: str, console: Console) -> None:
    names = ", ".join(dict.fromkeys(str(run.record.sweep or run.record.name) for run in comparison.runs))
    console.print(Text(f"\nValidation data {number}: {names}", style="bold"))
    console.print("Objectives that were measured on other rows do not compare with these.\n", style="dim")


def print_ranked_table(directories: Sequence[Path], console: Console) -> None:
    """The table and the advice, as a sweep prints them when it ends."""
    compare(directories, console)


def print_difference(directories: Sequence[Path], first: str, second: str, console: Console) -> None:
    """What differs between two runs, given by path or by a part of their folder's name."""
    runs = collect_runs(directories).runs if directories else []
    console.print(diff_table(find_run(first, runs), find_run(second, runs)))
