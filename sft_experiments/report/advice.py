"""What to do next, from the results: each piece of advice with its evidence, a command to paste, and how sure it is.

Rules are pure functions of the comparison and of the best run's curves; a rule that has nothing to say returns None.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sft_experiments.report.best import best_seed
from sft_experiments.report.collect import Run
from sft_experiments.report.curves import Curves, read_curves
from sft_experiments.report.rank import Comparison

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


def advise(comparison: Comparison) -> list[Advice]:
    """All advice that the results carry, the surest first. Reads one metrics file: the best run's."""
    from sft_experiments.report.advice_curves import CURVE_RULES
    from sft_experiments.report.advice_failures import all_failed
    from sft_experiments.report.advice_grid import GRID_RULES, edge_rule

    if comparison.best is None:
        return [advice] if (advice := all_failed(comparison)) else []
    run = best_seed(comparison.best, comparison)
    evidence = Evidence(comparison, run, read_curves(run.folder.metrics))
    offered = [edge_rule(evidence, key) for key in comparison.keys]
    offered += [rule(evidence) for rule in (*GRID_RULES, *CURVE_RULES)]
    return sorted(
        (advice for advice in offered if advice), key=lambda advice: (HIGH, MEDIUM, LOW).index(advice.confidence)
    )
