"""Nested settings: as flat dotted keys, as plain JSON values, and as a hash."""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"seed": 1}}`` as ``{"train.seed": 1}``. Lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def select(values: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings; None when there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def without(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of nested values that lacks the given dotted keys."""
    left = json.loads(json.dumps(values))
    for key in keys:
        *parents, last = key.split(".")
        node = left
        for parent in parents:
            node = node.get(parent, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(last, None)
    assert isinstance(left, dict)
    return left


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON form, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_of(content: Any) -> str:
    """SHA-256 of content as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Enums as their values, containers as JSON has them."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def scaled(value: Any, factor: float) -> Any:
    """``value`` or each of its items times ``factor``, without the noise of binary fractions (2e-5 x 10 = 2e-4)."""
    if isinstance(value, (int, float)):
        return float(f"{value * factor:.12g}")
    return [scaled(item, factor) for item in value]
