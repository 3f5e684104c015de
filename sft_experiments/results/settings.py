"""Which settings differ between runs, and the shortest names that keep them apart."""

from collections.abc import Iterable, Sequence
from typing import Any

from sft_experiments.results.collect import Run
from sft_experiments.values import flatten

SEED_KEYS = ("train.seed", "train.data_seed")


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Keys of deciding settings that have more than one value, sweep axes first, then in the config's order.

    A setting that nothing reads in some of the runs counts there as having no value.
    """
    values: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for run in runs:
        for key, value in run.deciding.items():
            values.setdefault(key, set()).add(identity(value))
            counts[key] = counts.get(key, 0) + 1
    axes = list(dict.fromkeys(axis for run in runs for axis in run.axes))
    order = [key for key in axes if key in values] + [key for key in values if key not in axes]
    return [key for key in order if len(values[key]) > 1 or counts[key] < len(runs)]


def shown_keys(runs: Sequence[Run]) -> list[str]:
    """The differing keys worth a column: without seeds, and without those that only mirror another column.

    Choosing another model changes a dozen settings at once; one column tells them apart. What somebody set, on an
    axis or by hand, has a column all the same: of two runs every difference mirrors every other.
    """
    deliberate = {key for run in runs for key in (*run.axes, *_typed(run))}
    chosen = _swept_groups(runs)
    partitions = [_partition(runs, key) for key in chosen]
    for key in differing_keys(runs):
        if key in SEED_KEYS:
            continue
        partition = _partition(runs, key)
        if key in deliberate or partition not in partitions:
            chosen.append(key)
            partitions.append(partition)
    return chosen


def _swept_groups(runs: Sequence[Run]) -> list[str]:
    """Axes that are no setting but a choice of many, such as ``peft`` or ``experiment``, when all runs are on them."""
    axes = dict.fromkeys(axis for run in runs for axis in run.axes)
    keys = {key for run in runs for key in flatten(run.record.config)}
    groups = [axis for axis in axes if axis not in keys and all(axis in run.axes for run in runs)]
    return [axis for axis in groups if len({identity(run.axes[axis]) for run in runs}) > 1]


def _typed(run: Run) -> list[str]:
    """Keys set on the command line; of a group that was chosen (``scheduler=linear``) its name."""
    words = [override.split("=")[0].lstrip("+~") for override in run.record.overrides]
    return [word if word in run.values else f"{word}.name" for word in words]


def _partition(runs: Sequence[Run], key: str) -> tuple[int, ...]:
    """Each run's value as the index of its first appearance: equal for keys that split the runs alike."""
    first: dict[str, int] = {}
    return tuple(
        first.setdefault(identity(run.deciding.get(key, run.axes.get(key))), index) for index, run in enumerate(runs)
    )


def short_names(keys: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """``train.learning_rate`` -> ``learning_rate``; a longer suffix where the short one would be ambiguous."""
    names = {}
    for key in keys:
        parts = key.split(".")
        candidates = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        others = [other for other in keys if other != key]
        names[key] = next(
            (
                name
                for name in candidates
                if name not in taken and not any(other == name or other.endswith("." + name) for other in others)
            ),
            key,
        )
    return names


def identity(value: Any) -> str:
    """A text equal for equal values: 1 and 1.0 are one setting, True and 1 are not."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    return repr(value)


def sort_key(value: Any) -> tuple[int, float, str]:
    """Orders any mixture of values: numbers by size, then texts, then missing ones."""
    if value is None:
        return 2, 0.0, ""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return 0, float(value), ""
    return 1, 0.0, str(value)
