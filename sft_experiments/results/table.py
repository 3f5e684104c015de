"""The ranked table on a terminal, readable at 80 columns and better at 120."""

from textwrap import shorten

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from sft_experiments.results.rank import Cell, Comparison, why_unranked
from sft_experiments.results.rows import Column, Table, setting_names
from sft_experiments.runs.record import Status
from sft_experiments.values import format_value

LONGEST_REASON = 400  # characters; the report page has the whole message
_STATUS_STYLE = {Status.pruned: "yellow", Status.preempted: "yellow", Status.running: "cyan", Status.pending: "dim"}


def render_table(table: Table, width: int) -> RenderableType:
    """Ranked rows, then what is not ranked, then what to beware of. Columns that do not fit are named below."""
    parts: list[RenderableType] = []
    if table.cells:
        columns, hidden = fit_columns(table, width)
        parts.append(_ranked_table(table, columns))
        if hidden:
            names = ", ".join(column.name for column in hidden)
            parts.append(Text(f"Hidden at this width: {names}. A wider terminal or --columns shows them.", style="dim"))
    else:
        parts.append(Text("No completed run with a finite objective: nothing is ranked."))
    if table.comparison.unranked:
        parts += [Text(""), Text("Not ranked", style="bold"), _unranked_table(table.comparison, width), Text("")]
    parts += [Text(line) for line in footnotes(table.comparison)]
    return Group(*parts)


def print_table(table: Table, console: Console) -> None:
    console.print(render_table(table, console.width))


def footnotes(comparison: Comparison) -> list[str]:
    """What the numbers mean, and notes on what does not compare."""
    aim = "lowest" if comparison.direction == "minimize" else "highest"
    lines = [f"{comparison.metric}: {aim} is best. {noise_sentence(comparison)}"] if comparison.cells else []
    lines += [f"Note: {note}." for note in comparison.notes]
    return lines + [f"Left out: {problem}" for problem in comparison.problems]


def noise_sentence(comparison: Comparison) -> str:
    """How sure the ranking is, in one sentence."""
    if comparison.noise is None:
        return "One seed each: the noise is unknown, so close values are not a ranking."
    within = sum(bool(cell.within_noise) for cell in comparison.cells[1:])
    spread = f"The spread between seeds is {comparison.noise.standard_deviation:.4f}"
    judged = sum(cell.within_noise is not None for cell in comparison.cells[1:])
    others = f"{within} of {judged} other configurations"
    return f"{spread}; {others} cannot be told from the best (≈)." if judged else f"{spread}."


def fit_columns(table: Table, width: int) -> tuple[list[Column], list[Column]]:
    """Drop the least important columns until the table fits ``width`` characters."""
    shown = list(table.columns)
    hidden: list[Column] = []
    while _width(shown, table.cells) > width and any(column.priority for column in shown):
        least = max(shown, key=lambda column: column.priority)
        shown.remove(least)
        hidden.append(least)
    return shown, hidden


def heading(name: str) -> str:
    """Words that a narrow column may break between; the name itself is typed with underscores."""
    return name.replace("_", " ")


def _width(columns: list[Column], cells: list[Cell]) -> int:
    return sum(_column_width(column, cells) + 2 for column in columns) - 2


def _column_width(column: Column, cells: list[Cell]) -> int:
    """Headings may break between words, values never break."""
    words = [len(word) for word in heading(column.name).split(" ")]
    return max([*words, *(len(column.text(column.value(cell))) for cell in cells)])


def _ranked_table(table: Table, columns: list[Column]) -> RichTable:
    rendered = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        justify: JustifyMethod = "right" if column.numeric else "left"
        width = _column_width(column, table.cells)
        rendered.add_column(Text(heading(column.name)), justify=justify, width=width, overflow="fold")
    for cell in table.cells:
        style = "bold green" if cell.rank == 1 else "green" if cell.within_noise else None
        rendered.add_row(*(Text(column.text(column.value(cell))) for column in columns), style=style)
    return rendered


def _unranked_table(comparison: Comparison, width: int) -> RichTable:
    """Status, settings, and the reason in what is left of the line (at least 20 characters)."""
    rendered = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    names = setting_names(comparison)
    widths = [max(len(run.record.status.value) for run in comparison.unranked)]
    rendered.add_column("status", width=widths[0])
    for key in comparison.keys:
        values = [len(format_value(run.values.get(key))) for run in comparison.unranked]
        widths.append(max(*values, *(len(word) for word in heading(names[key]).split(" "))))
        rendered.add_column(Text(heading(names[key])), justify="right", overflow="fold", width=widths[-1])
    rest = max(width - sum(widths) - 2 * len(widths), 20)
    rendered.add_column("why", overflow="fold", width=rest)
    for run in comparison.unranked:
        settings = [Text(format_value(run.values.get(key))) for key in comparison.keys]
        status = Text(run.record.status.value, style=_STATUS_STYLE.get(run.record.status, "red"))
        why = shorten(why_unranked(run, comparison.metric, comparison.direction), LONGEST_REASON, placeholder=" ...")
        rendered.add_row(status, *settings, Text(why))
    return rendered
