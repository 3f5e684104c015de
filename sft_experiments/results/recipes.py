"""Commands to paste: run the best again, use its model, extend a sweep."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_experiments.results.collect import Run
from sft_experiments.results.rank import Comparison
from sft_experiments.results.settings import SEED_KEYS, identity, sort_key
from sft_experiments.runs.folder import SWEEP_FILE
from sft_experiments.values import as_override, sft_command

SEARCH_SETTINGS = ("sweep=", "sweep.search", "sweep.num_trials=", "sweep.axes")
STOPPING_SETTINGS = ("sweep=", "sweep.early_stopping=", "sweep.rungs=", "sweep.reduction_factor=")


def reproduce_command(run: Run) -> str:
    """The recorded command; without one, a run from the recorded config."""
    return _placed(run, run.record.command) if run.record.command else train_command(run, {"rerun": True})


def use_command(run: Run) -> str:
    """How to get the run's model for use: exported, or trained again where its weights were not kept."""
    return export_command(run) if run.folder.has_weights else again_command(run)


def export_command(run: Run) -> str:
    return sft_command(["export", _typed_path(run, Path.cwd()), "my-model"], [])


def again_command(run: Run) -> str:
    """The same training under another name, in a folder of its own that keeps the weights."""
    return train_command(run, {"name": "final", "rerun": True})


def train_command(run: Run, changes: Mapping[str, Any]) -> str:
    """One run with the settings of ``run`` and some changes."""
    overrides = [as_override(key, value) for key, value in changes.items()]
    return _placed(run, sft_command(["train", "--from", _typed_path(run, _launch_folder(run))], overrides))


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
    kept = _as_grid(run, typed, num_seeds is not None)
    seeds = [f"sweep.num_seeds={num_seeds}"] if num_seeds else []
    # `sft sweep` would add the default grid to a launch that named no sweep
    launch = ["sweep"] if any(word.startswith("sweep=") for word in kept) else ["train", "-m"]
    settings = [*_own_folder(run, values), *kept, *(as_override(axis, *values[axis]) for axis in values), *seeds]
    return _placed(run, sft_command(launch, settings, run.record.config_dirs))


def _own_folder(run: Run, values: Mapping[str, Any]) -> list[str]:
    """The sweep's folder where the launch named it, outside of ``output_dir``; with other axes it is another sweep."""
    if not _is_in_a_folder_of_its_own(run) or values.keys() - run.record.axes.keys():
        return []
    return [as_override("hydra.sweep.dir", _typed(run.folder.path.parent, _launch_folder(run)))]


def _is_in_a_folder_of_its_own(run: Run) -> bool:
    folder = run.folder.path.parent
    return not _is_below_outputs(run) and folder.name == run.record.sweep and (folder / SWEEP_FILE).is_file()


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


def is_found_again(run: Run) -> bool:
    """Whether a command of the launch finds the run complete: it lies where the launch puts its runs, or is told."""
    return _is_below_outputs(run) or _is_in_a_folder_of_its_own(run)


def _is_below_outputs(run: Run) -> bool:
    outputs = _launch_folder(run) / str(run.record.config.get("output_dir", "outputs"))
    return run.folder.path.is_relative_to(outputs.resolve())


def _launch_folder(run: Run) -> Path:
    """Where the run's relative paths count from; the current folder when that is not known, or no longer there."""
    there = Path(run.record.launched_in or "")
    return there if run.record.launched_in and there.is_dir() else Path.cwd()


def _placed(run: Run, command: str) -> str:
    """A command of the launch, to paste where we are."""
    there = _launch_folder(run)
    return command if there == Path.cwd() else f"{shlex.join(['cd', str(there)])} && {command}"


def _typed_path(run: Run, base: Path) -> str:
    return _typed(run.folder.path, base)


def _typed(path: Path, base: Path) -> str:
    """The path as typed in ``base``: relative when it lies below it."""
    return str(path.relative_to(base) if path.is_relative_to(base) else path)
