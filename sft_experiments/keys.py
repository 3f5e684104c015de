"""What is known about one key of the schema beside its type and its sentence: kept with its field, as metadata.

Every table about keys is derived from here: which numbers are allowed, what decides a trial's result, which name
upstream has for it, with which options it is read. So a new key is one line in schema.py and one value in conf/.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any, NamedTuple, Optional

from omegaconf import MISSING

LARGEST_SEED = 2**32 - 1  # numpy's


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both allowed unless ``above_low`` or ``below_high`` says otherwise."""

    low: float
    high: float = math.inf
    above_low: bool = False
    below_high: bool = False

    def __contains__(self, value: float) -> bool:
        """NaN and infinity are in no range."""
        above = self.low < value if self.above_low else self.low <= value
        below = value < self.high if self.below_high or self.high == math.inf else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"a number above {self.low:g}" if self.above_low else f"at least {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.below_high else 'at most'} {self.high:.10g}"


POSITIVE = Range(0, above_low=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1, below_high=True)  # 1 is never meant
SEED = Range(0, LARGEST_SEED)


class Counts(Enum):
    """How a key decides what a trial is, and so its id and the columns that set runs apart."""

    value = "value"  # its value
    content = "content"  # what it names, or what becomes of it: the hash of a file, the precision on this device
    generated = "generated"  # its value, but only when the objective is measured on generated answers
    nothing = "nothing"  # not at all: names, places, watching, and what only splits the same work differently


class With(NamedTuple):
    """These values of another key, or any that is set; ``instead``: what a user may type about it."""

    key: str
    values: tuple[str, ...] = ()
    instead: str = ""

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the other key has one of the values, among these flat ``{"peft.method": "none"}`` ones."""
        found = values[self.key]
        if not self.values:
            return found not in (None, [], {})
        several = found if isinstance(found, (list, tuple)) else [found]
        return any(str(getattr(one, "name", one)) in self.values for one in several)


class _Nothing(Enum):
    nothing = 0


@dataclass(frozen=True)
class Key:
    """What is known about one key."""

    within: Optional[Range] = None  # of a number, or of each of a list
    judged_in: Optional[str] = None  # the module that judges a number whose order or company decides too
    counts: Counts = Counts.value
    # What stands in the id where the key does not count. Without it the key is left out there.
    constant: Any = _Nothing.nothing
    upstream: tuple[str, ...] = ()  # SFTConfig fields that this key sets
    only_with: Optional[With] = None  # elsewhere nothing reads it, and it does not decide
    idle_with: tuple[With, ...] = ()  # there nothing reads it, so that nobody should type it; it stays in the id
    is_source: bool = False  # of other values, which refer to it in conf/; nothing else reads it

    @property
    def has_constant(self) -> bool:
        return self.constant is not _Nothing.nothing

    def is_read(self, values: Mapping[str, Any]) -> bool:
        """Whether anything reads the key beside these flat ``{"peft.method": "none"}`` values."""
        return self.only_with is None or self.only_with.key not in values or self.only_with.holds(values)

    def idles(self, values: Mapping[str, Any]) -> Optional[With]:
        """What makes typing it pointless although it is in the id; None: it is read."""
        return next((one for one in self.idle_with if one.key in values and one.holds(values)), None)


KEY = "sft_experiments"  # of a field's metadata


def key(default: Any = MISSING, *, factory: Any = None, **known: Any) -> Any:
    """A field of the schema with what is known about it; ``factory`` makes the default of a list or mapping."""
    metadata = {KEY: Key(**known)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def known_keys(schema: type, prefix: str = "", inherited: Key = Key()) -> dict[str, Key]:
    """Every dotted key of a schema with what is known about it; a group hands down how it counts, when it is read."""
    found: dict[str, Key] = {}
    for one in fields(schema):
        own: Key = one.metadata.get(KEY, Key())
        if own.counts is Counts.value:
            own = replace(own, counts=inherited.counts)
        if own.only_with is None:
            own = replace(own, only_with=inherited.only_with)
        name = f"{prefix}{one.name}"
        if isinstance(one.type, type) and is_dataclass(one.type):
            found |= known_keys(one.type, f"{name}.", own)
        else:
            found[name] = own
    return found
