"""The ranked table with its advice on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sft_experiments.advice.advise import advise
from sft_experiments.advice.evidence import Advice
from sft_experiments.errors import ConfigError
from sft_experiments.results.collect import collect_runs
from sft_experiments.results.compare import diff_table, find_run, load_comparison
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
