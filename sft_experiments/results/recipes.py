"""Commands to paste: run the best again, use its model, extend a sweep."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_experiments.results.collect import Run
from sft_experiments.results.rank import Comparison
from sft_experiments.results.settings import SEED_KEYS, identity, sort_key
from sft_experiments.values import as_override

SEARCH_SETTINGS = ("sweep=", "sweep.search", "sweep.num_trials=", "sweep.axes")
STOPPING_SETTINGS = ("sweep=", "sweep.early_stopping=", "sweep.rungs=", "sweep.reduction_factor=")


def reproduce_command(run: Run) -> str:
    """The recorded command; without one, a run from the recorded config."""
    return run.record.command or f"sft train --from {quoted_path(run)} rerun=true"


def has_model(run: Run) -> bool:
    """Whether the weights were kept: a sweep keeps those of its best ``sweep.keep_models`` trials."""
    return any((run.folder.model / name).is_file() for name in ("config.json", "adapter_config.json"))


def use_command(run: Run) -> str:
    """How to get the run's model for use: exported, or trained again where its weights were not kept."""
    return export_command(run) if has_model(run) else again_command(run)


def export_command(run: Run) -> str:
    return f"sft export {quoted_path(run)} my-model"


def again_command(run: Run) -> str:
    """The same training under another name, in a folder of its own that keeps the weights."""
    return train_command(run, {"name": "final"})


def train_command(run: Run, changes: Mapping[str, Any]) -> str:
    """One run with the settings of ``run`` and some changes."""
    return " ".join(
        ["sft train --from", quoted_path(run), *(shlex.quote(as_override(key, changes[key])) for key in changes)]
    )


def sweep_command(
    comparison: Comparison, run: Run, axes: Mapping[str, Sequence[Any]], num_seeds: int | None = None
) -> str:
    """The sweep that ``run`` belongs to, over its own axes with those in ``axes`` replaced or added.

    A search has tried too many values for a grid of all of them: there the other axes keep the value of ``run``.

    Cells that already completed are not run again, so a command that adds values costs the new cells only.
    """
    others = [axis for axis in run.record.axes if axis not in SEED_KEYS]
    values = {
        axis: [axis_value(run, axis)] if _is_search(run) else sweep_values(comparison, run, axis) for axis in others
    }
    signed = {axis.lstrip("+"): axis for axis in others}
    values |= {signed.get(axis, axis): list(chosen) for axis, chosen in axes.items()}
    replaced = {*values, *SEED_KEYS} | ({"sweep.num_seeds"} if num_seeds else set())
    typed = [word for word in run.record.overrides if word.split("=")[0].lstrip("+~") not in replaced]
    kept = [shlex.quote(word) for word in _as_grid(run, typed, num_seeds is not None)]
    seeds = [f"sweep.num_seeds={num_seeds}"] if num_seeds else []
    # `sft sweep` would add the default grid to a launch that named no sweep
    launch = "sft sweep" if any(word.startswith("sweep=") for word in kept) else "sft train -m"
    return " ".join([launch, *kept, *(shlex.quote(as_override(axis, *values[axis])) for axis in values), *seeds])


def _as_grid(run: Run, typed: Sequence[str], with_seeds: bool) -> list[str]:
    """What was typed, for a sweep over listed values: it is no search, and no seed is stopped for another's sake."""
    is_stopping = with_seeds and run.record.config.get("sweep", {}).get("early_stopping")
    if not _is_search(run) and not is_stopping:
        return list(typed)
    of_the_method = SEARCH_SETTINGS if _is_search(run) else STOPPING_SETTINGS
    return ["sweep=none", *(word for word in typed if not word.lstrip("+~").startswith(of_the_method))]


def _is_search(run: Run) -> bool:
    return bool(run.record.config.get("sweep", {}).get("search", "grid") != "grid")


def sweep_values(comparison: Comparison, run: Run, axis: str) -> list[Any]:
    """All values of an axis in the run's sweep, sorted, whatever became of their trials."""
    neighbours = [other for other in comparison.runs if other.record.sweep == run.record.sweep]
    distinct = {identity(value): value for other in neighbours if (value := axis_value(other, axis)) is not None}
    return sorted(distinct.values(), key=sort_key)


def with_value(values: Sequence[Any], new: Any) -> list[Any]:
    """An axis' values and a new one, sorted."""
    distinct = {identity(value): value for value in (*values, new)}
    return sorted(distinct.values(), key=sort_key)


def axis_value(run: Run, axis: str) -> Any:
    """A run's place on an axis, as the sweep was given it: an axis may be a group, such as ``scheduler``."""
    return run.record.axes.get(axis, run.axes.get(axis, run.values.get(axis.lstrip("+"))))


def quoted_path(run: Run) -> str:
    """The folder as typed in a shell, relative to the current folder when it lies below it."""
    path = run.folder.path
    below = path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if below else path))
