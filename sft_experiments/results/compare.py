"""From folders to a comparison: collect the runs, rank their configurations, lay out the table."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from sft_experiments.errors import RunFolderError
from sft_experiments.results.collect import Collection, Run, collect_runs, read_run
from sft_experiments.results.comparability import validation_of
from sft_experiments.results.fields import filter_runs
from sft_experiments.results.rank import Cell, Comparison, compare_runs
from sft_experiments.results.settings import identity
from sft_experiments.runs.folder import RunFolder
from sft_experiments.values import flatten, format_value


def load_comparisons(directories: Sequence[Path], where: Sequence[str] = ()) -> list[Comparison]:
    """The comparisons of the runs below ``directories`` that satisfy ``where``: one for each set of validation data.

    The one with the most runs is first. Raises as ``load_comparison`` does.
    """
    collection = _collected(directories, where)
    groups: dict[Any, list[Run]] = {}
    for run in collection.runs:
        groups.setdefault(validation_of(run), []).append(run)
    first, *others = sorted(groups.values(), key=len, reverse=True)
    return [compare_runs(replace(collection, runs=first)), *(compare_runs(Collection(runs, [])) for runs in others)]


def load_comparison(directories: Sequence[Path], where: Sequence[str] = ()) -> Comparison:
    """The comparison of the runs below ``directories`` that satisfy ``where``.

    Raises ``RunFolderError`` when there are none, ``ConfigError`` for a condition that names nothing.
    """
    return compare_runs(_collected(directories, where))


def _collected(directories: Sequence[Path], where: Sequence[str]) -> Collection:
    collection = collect_runs(directories)
    runs = filter_runs(collection.runs, where)
    if not runs:
        reason = f"no run satisfies {' and '.join(where)}" if where and collection.runs else "no record is readable"
        raise RunFolderError("; ".join([reason, *collection.problems]))
    return replace(collection, runs=runs)


def best_run(directories: Iterable[Path]) -> Run:
    """The best run of the best configuration (its best seed). Raises ``RunFolderError`` when nothing is ranked."""
    comparison = compare_runs(collect_runs(directories))
    if comparison.best is None:
        raise RunFolderError(f"none of {len(comparison.unranked)} runs completed with a finite objective")
    return best_seed(comparison.best, comparison)


def best_seed(cell: Cell, comparison: Comparison) -> Run:
    """Among a configuration's seeds, the run with the best objective."""
    return min(cell.runs, key=comparison.run_loss)


def find_run(word: str, runs: Sequence[Run]) -> Run:
    """The run meant by a path, or by a part of a folder's name or the start of a trial id among ``runs``.

    Raises ``RunFolderError`` when nothing, or more than one run, answers to it.
    """
    if (Path(word) / "record.json").is_file():
        return read_run(RunFolder(Path(word)))
    exact = [run for run in runs if word in (run.name, run.record.trial_id)]
    matches = exact or [run for run in runs if word in run.name or run.record.trial_id.startswith(word)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise RunFolderError(f"no run is called {word!r}; give a run folder or a part of its name")
    shown = ", ".join(run.name for run in matches[:4])
    raise RunFolderError(f"{word!r} names {len(matches)} runs ({shown}{', ...' if len(matches) > 4 else ''})")


def differences(first: Run, second: Run) -> list[tuple[str, Any, Any]]:
    """(name, first value, second value) of all that differs: settings, then content, then environment."""
    result = []
    for prefix, one, other in (
        ("", first.values, second.values),
        ("fingerprint ", first.record.fingerprints, second.record.fingerprints),
        ("environment ", flatten(first.record.environment), flatten(second.record.environment)),
    ):
        for key in dict.fromkeys([*one, *other]):
            if key not in one or key not in other or identity(one[key]) != identity(other[key]):
                result.append((prefix + key, one.get(key), other.get(key)))
    return result


def diff_table(first: Run, second: Run) -> RichTable:
    """The differences side by side."""
    rendered = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    rendered.add_column("", no_wrap=True)
    for run in (first, second):
        rendered.add_column(Text(run.name), overflow="fold")
    for key, one, other in differences(first, second):
        rendered.add_row(Text(key), Text(format_value(one)), Text(format_value(other)))
    return rendered
