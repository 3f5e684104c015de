"""Numbers as people read them."""

import math
from typing import Any

from sft_experiments.errors import ConfigError

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
