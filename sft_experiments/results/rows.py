"""The ranked table as data: columns, each with its plain value and its text; renderers only lay them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sft_experiments.errors import ConfigError, nearest
from sft_experiments.results.collect import number
from sft_experiments.results.fields import FACTS, Reader, field_reader
from sft_experiments.results.rank import Cell, Comparison
from sft_experiments.results.settings import short_names, sort_key
from sft_experiments.results.statistics import mean
from sft_experiments.runs.metrics import Shown, shown_in
from sft_experiments.values import format_count, format_score, format_seconds, format_value


@dataclass(frozen=True)
class Column:
    """One column of the ranked table. ``rank`` orders columns by importance when the screen is narrow (0 stays)."""

    name: str
    value: Callable[[Cell], Any]
    text: Callable[[Any], str]
    numeric: bool = True
    priority: int = 0


@dataclass(frozen=True)
class Table:
    """Ranked cells with the columns to show, and the runs below the line."""

    columns: list[Column]
    cells: list[Cell]
    comparison: Comparison

    @property
    def setting_names(self) -> dict[str, str]:
        return setting_names(self.comparison)


_OWN_NAMES = ("rank", "objective", "spread", "n", "verdict", "best_step", "tokens", "seconds", "tokens_per_second")


def setting_names(comparison: Comparison) -> dict[str, str]:
    """Setting -> its short column name."""
    return short_names(comparison.keys, taken=_OWN_NAMES)


def build_table(comparison: Comparison, columns: Sequence[str] = (), sort: str | None = None) -> Table:
    """The table with ``columns`` (empty: all that say something here), sorted by ``sort`` (``-name``: downwards).

    Raises ``ConfigError`` with the nearest names for a column that does not exist.
    """
    standard = _standard_columns(comparison)
    chosen = [_named(word, standard, comparison) for word in columns] if columns else _default(standard, comparison)
    cells = comparison.cells
    if sort:
        column = _named(sort.lstrip("-"), standard, comparison)
        missing = [cell for cell in cells if column.value(cell) is None]
        present = [cell for cell in cells if column.value(cell) is not None]
        present.sort(key=lambda cell: sort_key(column.value(cell)), reverse=sort.startswith("-"))
        cells = present + missing
    return Table(chosen, list(cells), comparison)


def verdict(cell: Cell, comparison: Comparison) -> str:
    """``best``, ``≈ best`` when it cannot be told from the best (within noise), or nothing."""
    if cell.rank == 1:
        return "best"
    return "≈ best" if cell.within_noise else ""


def setting_column(key: str, name: str, comparison: Comparison) -> Column:
    """A setting; texts such as model names are aligned to the left."""
    numeric = all(isinstance(run.values.get(key), int | float | None) for run in comparison.runs)
    return Column(name, lambda cell: cell.values.get(key), format_value, numeric)


def _standard_columns(comparison: Comparison) -> list[Column]:
    names = setting_names(comparison)
    return [
        Column("rank", lambda cell: cell.rank, str),
        *(setting_column(key, names[key], comparison) for key in comparison.keys),
        Column(comparison.metric, lambda cell: cell.mean, format_score),
        Column("spread", lambda cell: cell.spread, lambda value: "" if value is None else f"{value:.4f}"),
        Column("n", lambda cell: len(cell.runs), str),
        Column("verdict", lambda cell: verdict(cell, comparison), str, numeric=False),
        Column("failed", lambda cell: sum(run.record.status.is_failure for run in cell.incomplete), str, priority=1),
        *(_metric(one.name) for one in shown_in(Shown.table) if one.name != comparison.metric),
        _fact("best_step", lambda step: str(round(step)), priority=3),
        _fact("tokens", format_count, priority=5),
        _fact("seconds", format_seconds, priority=2),
        _fact("tokens_per_second", format_count, priority=4),
        Column("alerts", _alerts, str, numeric=False, priority=6),
    ]


def _default(columns: list[Column], comparison: Comparison) -> list[Column]:
    """Without columns that say nothing here."""
    cells = comparison.cells
    silent = {column.name for column in columns if not any(column.value(cell) not in (None, "", 0) for cell in cells)}
    silent -= {"rank", "verdict", comparison.metric, *setting_names(comparison).values()}
    if all(len(cell.runs) == 1 for cell in cells):
        silent |= {"spread", "n"}
    return [column for column in columns if column.name not in silent]


def _named(word: str, standard: Sequence[Column], comparison: Comparison) -> Column:
    for column in standard:
        if column.name == word or (word == "objective" and column.name == comparison.metric):
            return column
    try:
        name, read = field_reader(word, comparison.runs)
    except ConfigError as error:
        known = [column.name for column in standard]
        raise ConfigError(str(error) if "did you mean" in str(error) else f"{error}{nearest(word, known)}") from None
    return next((column for column in standard if column.name == name), _fact(word, format_value, read=read))


def _fact(name: str, text: Callable[[Any], str], priority: int = 0, read: Reader | None = None) -> Column:
    """A fact of runs as a column: the mean over a row's seeds for numbers, else the distinct texts."""
    reader = read or FACTS[name]

    def value(cell: Cell) -> Any:
        return combined([reader(run) for run in cell.runs])

    return Column(name, value, lambda value: "" if value is None else text(value), priority=priority)


def _metric(name: str) -> Column:
    return _fact(name, format_score, priority=2, read=lambda run: number(run.record.metrics, name))


def combined(values: Sequence[Any]) -> Any:
    """One value for several seeds: the mean of numbers, the distinct texts joined, None when none has one."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return mean(present) if len(present) > 1 else present[0]
    return ", ".join(dict.fromkeys(format_value(value) for value in present))


def _alerts(cell: Cell) -> str:
    return ", ".join(dict.fromkeys(str(alert.get("rule")) for run in cell.runs for alert in run.record.alerts))
