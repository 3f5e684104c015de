"""Which settings decide a result: what a trial's id is a hash of, and what sets runs apart in a table.

Both are read off the schema's metadata (keys.py), so they cannot disagree.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from sft_experiments.keys import Counts, Key, known_keys
from sft_experiments.runs.metrics import find
from sft_experiments.schema import Config
from sft_experiments.values import flatten

_FILES = ("train_files", "validation_files", "test_files")  # of a part of a mixture; their content counts


@cache
def keys() -> dict[str, Key]:
    """Every key of the config with what is known about it."""
    return known_keys(Config)


def key_of(name: str) -> Key:
    """What is known about a dotted key or about the mapping that it stands in (``train.extra.neftune_noise_alpha``)."""
    known = keys()
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return known.get(name, Key())


def _counts(key: Key, flat: Mapping[str, Any]) -> Counts:
    """How a key counts beside the other values of its run."""
    if not key.is_read(flat):
        return Counts.nothing
    if key.counts is not Counts.generated:
        return key.counts
    metric = find(str(flat.get("objective.metric")))
    return Counts.value if metric is not None and metric.is_generated else Counts.nothing


def deciding(values: Mapping[str, Any], all_are_read: bool = False) -> dict[str, Any]:
    """Of nested settings, those whose values decide the result; what counts by content is left out.

    A key that nothing reads stands with its constant, or not at all. ``all_are_read``: as ids were made before keys
    that nothing reads left them.
    """
    left: dict[str, Any] = json.loads(json.dumps(values))
    flat = flatten(dict(values))
    for name, key in keys().items():
        *parents, last = name.split(".")
        node: Any = left
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            continue
        how = _counted_before(key) if all_are_read else _counts(key, flat)
        if how is Counts.value:
            continue
        if key.has_constant and how is Counts.nothing:
            node[last] = key.constant
        else:
            del node[last]
    _drop_empty_groups(left)
    for part in left.get("dataset", {}).get("mixture", {}).values():
        for name in _FILES:
            part.pop(name, None)
    return left


def _counted_before(key: Key) -> Counts:
    """How a key counted in ids of 0.1.0, which knew nothing of keys that nothing reads."""
    return Counts.value if key.counts is Counts.generated or key.has_constant else key.counts


def _drop_empty_groups(left: dict[str, Any]) -> None:
    """Remove groups of which nothing is left, the innermost first."""
    groups = {name.rpartition(".")[0] for name in keys()} - {""}
    for group in sorted(groups, key=lambda name: -name.count(".")):
        *parents, last = group.split(".")
        node: Any = left
        for parent in parents:
            node = node.get(parent, {})
        if node.get(last) == {}:
            del node[last]


def decides(name: str, flat: Mapping[str, Any]) -> bool:
    """Whether a setting of a run takes part in its result, seeds included; ``flat``: all settings of the run."""
    return _counts(key_of(name), flat) is not Counts.nothing
