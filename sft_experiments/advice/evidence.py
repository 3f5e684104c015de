"""What a piece of advice consists of, and the evidence that its rules look at.

Rules are pure functions of the comparison and of the best run's curves; a rule that has nothing to say returns None.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sft_experiments.results.collect import Run
from sft_experiments.results.curves import Curves
from sft_experiments.results.rank import Comparison

HIGH, MEDIUM, LOW = "high", "medium", "low"


@dataclass(frozen=True)
class Advice:
    """One thing to do. ``rule`` names its kind; ``confidence`` is high, medium or low."""

    rule: str
    finding: str
    evidence: str
    action: str
    command: str
    confidence: str


@dataclass(frozen=True)
class Evidence:
    """What the rules look at: all results, the best run, and its curves."""

    comparison: Comparison
    run: Run
    curves: Curves


Rule = Callable[[Evidence], Advice | None]
