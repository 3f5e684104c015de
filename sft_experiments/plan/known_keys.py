"""Mappings whose keys are ours although the schema cannot name them: an unknown key is answered with the nearest."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Optional

from sft_experiments.data.demo import DEMO_DEFAULTS
from sft_experiments.data.formats import FIELDS
from sft_experiments.data.rules import RULES
from sft_experiments.errors import nearest
from sft_experiments.monitor.health import OUTSIDE
from sft_experiments.monitor.health import RULES as HEALTH_RULES
from sft_experiments.schema import Config, HealthRuleConfig

KNOWN_KEYS: dict[str, tuple[str, ...]] = {
    "dataset.columns": FIELDS,
    "dataset.rules": tuple(RULES),
    "dataset.demo": tuple(DEMO_DEFAULTS),
    "monitor.rules": (*HEALTH_RULES, *OUTSIDE),
}
IN_A_HEALTH_RULE = tuple(field.name for field in fields(HealthRuleConfig))


def unknown_keys(config: Config) -> Iterator[str]:
    """One line for each key of the data set's mappings that means nothing (monitor/health.py checks its rules)."""
    dataset = config.dataset
    given = {"dataset.columns": [*dataset.columns], "dataset.rules": [*dataset.rules], "dataset.demo": [*dataset.demo]}
    for mapping, keys in given.items():
        for key in sorted(set(keys) - set(KNOWN_KEYS[mapping])):
            yield f"{mapping}.{key}: no such key{known_hint(f'{mapping}.{key}')}"


def known_hint(key: str) -> Optional[str]:
    """The nearest key and all known ones for an unknown key of these mappings; None for any other key."""
    for mapping, known in KNOWN_KEYS.items():
        if key.startswith(f"{mapping}."):
            name, _, inner = key.removeprefix(f"{mapping}.").partition(".")
            if name in known and inner:
                name, known = inner, IN_A_HEALTH_RULE
            return f"{nearest(name, list(known))}; known: {', '.join(known)}"
    return None
