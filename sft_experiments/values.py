"""Values: as people read them, as flat dotted keys, as plain JSON, and as a hash."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from sft_experiments.errors import ConfigError


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
    """SHA-256 of what data are and how they are prepared, in hex.

    Its JSON has spaces, unlike that of ``digest``: fingerprints, ids of trials and the cache rest on either form.
    """
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


GIB = 2**30


def format_value(value: Any) -> str:
    """A setting: ``2e-5`` for 0.00002, ``0.05``, ``32``, ``true``, ``null``; texts as they are."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, list):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return str(value)


_WORDS_OF_THE_GRAMMAR = {"null", "true", "false", "nan", "inf"}


def sft_command(words: Sequence[str], settings: Sequence[str], config_dirs: Sequence[str] = ()) -> str:
    """A command line to paste into a shell: ``words`` after ``sft``, the folders of ``--config-dir``, ``key=value``."""
    flags = [word for folder in config_dirs for word in ("--config-dir", folder)]
    return shlex.join(["sft", *words, *flags, *settings])


def as_override(key: str, *values: Any) -> str:
    """``key=value``, or ``key=a,b`` for several, as Hydra's grammar reads it back; a shell needs quotes around it."""
    return f"{key}={','.join(map(_override_value, values))}"


def _override_value(value: Any) -> str:
    """A text that the grammar would take apart stands in quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_override_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_override_value, value)) + "]"
    text = format_value(value)
    if isinstance(value, float) and float(text) != value:
        text = repr(value)  # rounded, it would be another trial
    is_plain = re.fullmatch(r"[A-Za-z_/][\w./:@%+-]*", text) and text.lower() not in _WORDS_OF_THE_GRAMMAR
    if not isinstance(value, str) or is_plain:
        return text
    return "'" + text.replace("'", "\\'") + "'"


def _short_float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 1e-2:
        mantissa, exponent = f"{value:.5e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.6g}"


def format_rate(value: float) -> str:
    """A learning rate between others of a schedule: three digits, ``9.37e-5``."""
    return format_value(float(f"{value:.3g}"))


def format_score(value: float | None, spread: float | None = None) -> str:
    """An objective to four decimals, with its spread between seeds where there is one."""
    if value is None:
        return ""
    text = f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
    return text if spread is None else f"{text} ± {spread:.4f}"


def format_count(value: float | None) -> str:
    """``940``, ``12.3k``, ``4.6M``."""
    if value is None:
        return ""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if value != int(value) else str(int(value))


def format_seconds(value: float | None) -> str:
    """``14s``, ``3m20s``, ``2h05m``."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.0f}s" if value >= 10 else f"{value:.1f}s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


SIZE_UNITS = {"gib": GIB, "gb": 1e9, "g": GIB, "mib": GIB / 1024, "mb": 1e6, "": GIB}


def parse_size(text: str) -> float:
    """Bytes from ``80GiB``, ``80GB``, ``80G`` (GiB) or a plain number of GiB. Raises ``ConfigError``."""
    stripped = text.strip().lower()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = stripped[len(number) :].strip()
    try:
        size = float(number) * SIZE_UNITS[unit]
    except (ValueError, KeyError):
        raise ConfigError(f"--device-memory {text}: must be a size like 80GiB or 24GB") from None
    if not 0 < size < float("inf"):
        raise ConfigError(f"--device-memory {text}: must be above 0")
    return size


def gib(size: float) -> str:
    """Bytes for people: 23.4 GiB, 210 MiB, 0.3 MiB."""
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**20:.1g} MiB"
