"""What to do next, from the results: each piece of advice with its evidence, a command to paste, and how sure it is.

Rules are pure functions of the comparison and of the best run's curves; a rule that has nothing to say returns None.
"""

from sft_experiments.advice.evidence import HIGH, LOW, MEDIUM, Advice, Evidence
from sft_experiments.advice.from_curves import CURVE_RULES
from sft_experiments.advice.from_failures import all_failed
from sft_experiments.advice.from_grid import GRID_RULES, edge_rule
from sft_experiments.results.compare import best_seed
from sft_experiments.results.curves import read_curves
from sft_experiments.results.rank import Comparison


def advise(comparison: Comparison) -> list[Advice]:
    """All advice that the results carry, the surest first. Reads one metrics file: the best run's."""
    if comparison.best is None:
        return [advice] if (advice := all_failed(comparison)) else []
    run = best_seed(comparison.best, comparison)
    evidence = Evidence(comparison, run, read_curves(run.folder.metrics))
    swept = evidence.run.axes or comparison.keys  # a setting that only follows from an axis is no axis
    offered = [edge_rule(evidence, key) for key in comparison.keys if key in swept]
    offered += [rule(evidence) for rule in (*GRID_RULES, *CURVE_RULES)]
    return sorted(
        (advice for advice in offered if advice), key=lambda advice: (HIGH, MEDIUM, LOW).index(advice.confidence)
    )
