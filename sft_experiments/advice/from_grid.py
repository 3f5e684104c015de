"""Advice from a grid's results: its edges, its noise, its batch sizes, its learning rates."""

import math
from typing import Any

from sft_experiments.advice.evidence import HIGH, LOW, MEDIUM, Advice, Evidence, Rule
from sft_experiments.advice.lines import Line, beyond, line_through_best
from sft_experiments.advice.optimum import Optimum, fit_optimum
from sft_experiments.results.collect import number
from sft_experiments.results.compare import best_seed
from sft_experiments.results.rank import SAME_BUDGET, Cell, Comparison
from sft_experiments.results.recipes import (
    axis_value,
    is_found_again,
    sweep_command,
    sweep_values,
    use_command,
    with_value,
)
from sft_experiments.results.rows import combined
from sft_experiments.results.settings import SEED_KEYS, identity, sort_key
from sft_experiments.values import format_count, format_score, format_seconds, format_value

LEARNING_RATE = "train.learning_rate"
BATCH_SIZE = "train.effective_batch_size"
WORTHWHILE_SPEEDUP = 1.1
MAX_SEEDS = 10
_FRACTIONS = ("_ratio", "dropout", "_fraction", "beta1", "beta2")  # settings that cannot grow past 1


def edge_rule(evidence: Evidence, key: str) -> Advice | None:
    """The best value of an axis is its smallest or largest: the optimum may lie beyond."""
    line = line_through_best(evidence.comparison, key)
    values = sorted({*line.values, *line.stopped})
    if len(values) < 2:
        return None
    best = evidence.comparison.cells[0].values[key]
    if best not in (values[0], values[-1]):
        return None
    up = best == values[-1]
    if sum(cell.rank == 1 for cell in line.cells) > 1:
        return None  # the objective is the same further in
    if any((value > best) == up for value, _ in line.unranked):
        return None  # tried further out, and it failed or is not done yet
    new = beyond(values, up, integer=isinstance(best, int))
    if new is None or (new >= 1 and key.endswith(_FRACTIONS)):
        return None
    return _edge_advice(evidence, line, up, new)


def _edge_advice(evidence: Evidence, line: Line, up: bool, new: float) -> Advice:
    comparison = evidence.comparison
    inwards = line.cells[::-1] if up else line.cells
    same = inwards[1].within_noise if len(inwards) > 1 else None
    losses = [comparison.loss(cell) for cell in inwards]
    steady = len(losses) >= 3 and losses == sorted(losses)
    confidence = LOW if same else HIGH if same is False else MEDIUM if steady else LOW
    end = "largest" if up else "smallest"
    scores = {value: format_score(cell.mean) for value, cell in zip(line.values, line.cells, strict=True)}
    scores |= dict.fromkeys(line.stopped, "stopped early")
    trail = ", ".join(f"{format_value(value)}: {scores[value]}" for value in sorted(scores))
    tried = sweep_values(comparison, evidence.run, line.key)
    caution, unequal = _budgets(line) if line.key == BATCH_SIZE else ("", False)
    if unequal:
        confidence = LOW
    doubt = " The next value is within noise of it, so the trend is not sure." if same else ""
    return Advice(
        rule="edge",
        finding=f"The best {line.name}, {format_value(line.values[-1 if up else 0])}, is the {end} tried.{doubt}",
        evidence=f"{comparison.metric} by {line.name}: {trail}.{caution}",
        action=f"Extend the grid to {line.name}={format_value(new)}{_kept(evidence)}.",
        command=sweep_command(comparison, evidence.run, {line.key: with_value(tried, new)}),
        confidence=confidence,
    )


def _kept(evidence: Evidence) -> str:
    """Said where it is so."""
    return "; finished cells are kept" if all(map(is_found_again, evidence.comparison.runs)) else ""


def _budgets(line: Line) -> tuple[str, bool]:
    """What else changes along the axis of batch sizes, and whether it is the number of tokens."""
    counts = [number(run.record.metrics, "tokens") for cell in line.cells for run in cell.runs]
    known = [count for count in counts if count is not None]
    if known and max(known) > SAME_BUDGET * min(known):
        few, many = format_count(min(known)), format_count(max(known))
        return f" At a fixed number of steps a larger batch is also trained on more tokens, {few} to {many} here.", True
    return " At fixed epochs a smaller batch also means more steps.", False


def noise_rule(evidence: Evidence) -> Advice | None:
    """Differences that the seeds cannot carry, or noise that was never measured."""
    comparison = evidence.comparison
    if len({cell.mean for cell in comparison.cells}) < 2:
        return None  # one configuration, or an objective that is the same for all: more seeds would not tell
    noise = comparison.noise
    if noise is None:
        seeds, close, confidence = 3, comparison.cells[:3], MEDIUM
        finding = "The noise between seeds was not measured, so close values are not a ranking."
        gap = abs(comparison.cells[1].mean - comparison.cells[0].mean)
        proof = f"one seed each; the best two differ by {gap:.4f}"
    else:
        close = [cell for cell in comparison.cells if cell.within_noise]
        if len(close) < 2:
            return None
        gap = abs(close[1].mean - close[0].mean)
        most = max(len(cell.runs) for cell in close)
        seeds = min(max(seeds_to_separate(gap, noise.standard_deviation), most + 1), max(MAX_SEEDS, most + 1))
        confidence = HIGH
        finding = f"{len(close)} configurations cannot be told apart with the seeds there are."
        proof = f"spread between seeds {noise.standard_deviation:.4f}; the best two differ by {gap:.4f}"
    axes = {axis: _values_of(close, axis) for axis in evidence.run.record.axes if axis not in SEED_KEYS}
    return Advice(
        rule="noise",
        finding=finding,
        evidence=proof[0].upper() + proof[1:] + ".",
        action=f"Run {seeds} seeds of {_grid_of(close, axes)}, or take the cheapest of the leading ones.",
        command=sweep_command(comparison, evidence.run, axes, num_seeds=seeds),
        confidence=confidence,
    )


def seeds_to_separate(gap: float, standard_deviation: float) -> int:
    """Seeds per configuration for which ``gap`` is two standard errors of a difference of two means."""
    return MAX_SEEDS if gap <= 0 else min(math.ceil(2 * (2 * standard_deviation / gap) ** 2), MAX_SEEDS)


def batch_size_rule(evidence: Evidence) -> Advice | None:
    """Batch sizes that make no difference, each at its best other settings: take the fastest."""
    comparison = evidence.comparison
    if BATCH_SIZE not in comparison.keys or comparison.noise is None:
        return None
    best_of: dict[str, Cell] = {}
    for cell in comparison.cells:
        best_of.setdefault(identity(cell.values.get(BATCH_SIZE)), cell)
    alike = [cell for cell in best_of.values() if cell.within_noise and seconds(cell)]
    if len(alike) < 2 or comparison.cells[0] not in alike:
        return None
    fastest = min(alike, key=lambda cell: seconds(cell) or math.inf)
    slow, fast = seconds(comparison.cells[0]), seconds(fastest)
    if slow is None or fast is None or slow < fast * WORTHWHILE_SPEEDUP:
        return None
    sizes = ", ".join(
        f"{format_value(cell.values[BATCH_SIZE])}: {format_score(cell.mean)} in {format_seconds(seconds(cell))}"
        for cell in alike
    )
    return Advice(
        rule="batch_size",
        finding=f"The batch size makes no measurable difference among {len(alike)} sizes; one is faster.",
        evidence=f"{comparison.metric} by effective batch size: {sizes}; spread between seeds "
        f"{comparison.noise.standard_deviation:.4f}.",
        action=f"Take effective_batch_size={format_value(fastest.values[BATCH_SIZE])}: {slow / fast:.1f}x faster.",
        command=use_command(best_seed(fastest, comparison)),
        confidence=MEDIUM,  # "not told apart" is no proof of equality
    )


def learning_rate_optimum(comparison: Comparison) -> Optimum | None:
    """The parabola's minimum along the best configuration's line of learning rates."""
    if not comparison.cells:
        return None
    line = line_through_best(comparison, LEARNING_RATE)
    best = comparison.cells[0].values.get(LEARNING_RATE)
    sign = 1 if comparison.direction == "minimize" else -1
    cells = zip(line.values, line.cells, strict=True)
    points = [(value, sign * objective) for value, cell in cells for objective in cell.objectives]
    noise = comparison.noise.standard_deviation if comparison.noise else None
    return fit_optimum(points, best, noise) if isinstance(best, float) else None


def optimum_rule(evidence: Evidence) -> Advice | None:
    """The learning rate that a parabola through the results puts at the bottom."""
    comparison = evidence.comparison
    optimum = learning_rate_optimum(comparison)
    if optimum is None:
        return None
    best = float(comparison.cells[0].values[LEARNING_RATE])
    estimate = float(f"{optimum.estimate:.2g}")
    inside = optimum.low <= best <= optimum.high
    interval = f"{format_value(float(f'{optimum.low:.2g}'))} to {format_value(float(f'{optimum.high:.2g}'))}"
    tried = sweep_values(comparison, evidence.run, LEARNING_RATE)
    return Advice(
        rule="optimum",
        finding=f"A parabola over log learning rate has its optimum at {format_value(estimate)}"
        + (", and the best value tried lies in its interval: a finer grid would gain little." if inside else "."),
        evidence=f"95% interval {interval} from {optimum.num_points} runs.",
        action=f"Use {format_value(best)}; this command would check the estimate."
        if inside
        else "Add this learning rate to the grid.",
        command=sweep_command(comparison, evidence.run, {LEARNING_RATE: with_value(tried, estimate)}),
        confidence=MEDIUM,
    )


def seconds(cell: Cell) -> float | None:
    """Mean training seconds of a row."""
    value = combined([number(run.record.timings, "train") or number(run.record.timings, "total") for run in cell.runs])
    return float(value) if value else None


def _grid_of(leading: list[Cell], axes: dict[str, list[Any]]) -> str:
    """What a sweep over the leading configurations' values runs: every combination, so it may hold others too."""
    size = math.prod(len(values) for values in axes.values())
    if size <= len(leading):
        return "the leading configurations"
    return f"the {size} combinations of the {len(leading)} leading configurations' values"


def _values_of(cells: list[Cell], axis: str) -> list[Any]:
    distinct = {identity(value): value for cell in cells if (value := axis_value(cell.runs[0], axis)) is not None}
    return sorted(distinct.values(), key=sort_key)


GRID_RULES: tuple[Rule, ...] = (noise_rule, batch_size_rule, optimum_rule)
