"""Rank configurations by their objective, and say which differences the seeds can carry.

Seeds of one configuration are one row: mean, spread (sample standard deviation), n.

Within noise of the best: the best was picked because its mean is the lowest of k noisy ones, so a test of one pair
would see differences where there are none (in 18% of sweeps with 15 equal configurations, even when corrected for
k - 1 comparisons). The right yardstick is the range of k means: Tukey's test, here with Bonferroni's bound on its
quantile. A configuration cannot be told from the best while

    difference <= t(1 - 0.05 / (k (k - 1)), df) * sqrt(v_best / n_best + v / n)

where df and the pooled variance come from all configurations with two seeds or more, and v is the larger of the
pooled and the configuration's own variance, because losses near divergence scatter more. So "worse than the best"
is wrong for any row of the table in at most 5% of sweeps. Without repeated seeds the noise is unknown and nothing
is claimed.

Short trainings scatter more than long ones. So noise is pooled over the configurations that were trained on about as
many tokens as the best, and only these are judged; of the others the order is shown, and nothing is claimed.

Equal objectives share a rank. Among them the lower eval/loss comes first: a share of exact answers is often 0, or the
same for all, when the losses differ long since.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sft_experiments.results.collect import Collection, Run, number
from sft_experiments.results.comparability import comparability_notes
from sft_experiments.results.settings import SEED_KEYS, differing_keys, identity, shown_keys
from sft_experiments.results.statistics import mean, pooled_variance, student_quantile, variance
from sft_experiments.runs.metrics import EVAL_LOSS, NATS_PER_BYTE
from sft_experiments.runs.record import Status

SIGNIFICANCE = 0.05
SAME_BUDGET = 1.1  # times the tokens of the best: batch sizes that do not divide an epoch shift them by some steps


@dataclass(frozen=True)
class Cell:
    """One configuration: its completed runs with a finite objective (one per seed), and the others."""

    runs: list[Run]
    incomplete: list[Run]
    rank: int = 0
    within_noise: bool | None = None  # of the best; None: unknown

    @property
    def objectives(self) -> list[float]:
        return [run.record.objective for run in self.runs if run.record.objective is not None]

    @property
    def mean(self) -> float:
        return mean(self.objectives)

    @property
    def spread(self) -> float | None:
        return math.sqrt(variance(self.objectives)) if len(self.runs) > 1 else None

    @property
    def values(self) -> dict[str, Any]:
        return self.runs[0].values

    @property
    def name(self) -> str:
        return self.runs[0].name


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one run's objective between seeds, and the degrees of freedom behind it."""

    standard_deviation: float
    degrees_of_freedom: int


@dataclass(frozen=True)
class Comparison:
    """All that is known about some runs: ranked configurations, the rest, and what to beware of."""

    metric: str
    direction: str
    cells: list[Cell]
    unranked: list[Run]
    noise: Noise | None
    keys: list[str]  # settings worth a column
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def best(self) -> Cell | None:
        return self.cells[0] if self.cells else None

    @property
    def runs(self) -> list[Run]:
        """Ranked runs first, in rank order, a configuration's best seed first."""
        ranked = [run for cell in self.cells for run in sorted(cell.runs, key=self.run_loss)]
        return ranked + self.unranked

    def run_loss(self, run: Run) -> float:
        return (run.record.objective or 0.0) * (1 if self.direction == "minimize" else -1)

    def loss(self, cell: Cell) -> float:
        """The objective turned so that smaller is better."""
        return cell.mean if self.direction == "minimize" else -cell.mean


def compare_runs(collection: Collection) -> Comparison:
    """Rank the runs of a collection. Runs whose objective is another metric than most are listed, not ranked."""
    runs, change_of_metric = in_common_units(collection.runs)
    metric, direction = _objective(runs)
    settings = [key for key in differing_keys(runs) if key not in SEED_KEYS]
    cells, unranked, repeats = [], [], 0
    for group in _split(runs, lambda run: tuple(identity(run.deciding.get(key)) for key in settings)):
        ranked = [run for run in group if _rankable(run, metric, direction)]
        others = [run for run in group if not _rankable(run, metric, direction)]
        unranked += others
        for same_content in _split(ranked, lambda run: tuple(sorted(run.record.fingerprints.items()))):
            distinct = _one_per_seed(same_content)
            repeats += len(same_content) - len(distinct)
            cells.append(Cell(distinct, others))
    ordered = _in_order(cells, direction)
    ranks = [1 + sum(other.mean != cell.mean for other in ordered[:place]) for place, cell in enumerate(ordered)]
    alike = [cell for cell in ordered if _same_budget(ordered[0], cell)]
    noise = _noise(alike)
    notes = [*change_of_metric, *comparability_notes([run for cell in cells for run in cell.runs])]
    if noise and (unlike := [cell for cell in ordered if cell not in alike]):
        notes.append(
            f"{len(unlike)} configuration(s) were trained on another number of tokens than the best: whether they"
            " differ from it by more than noise is not judged"
        )
    notes += _ties(ordered, metric)
    if repeats:
        notes.append(f"{repeats} run(s) repeat a seed of the same configuration; the newest of each counts, once")
    return Comparison(
        metric,
        direction,
        _ranked(ordered, ranks, alike, noise),
        sorted(unranked, key=_place_at_rung),
        noise,
        shown_keys(runs),
        notes,
        collection.problems,
    )


def _place_at_rung(run: Run) -> tuple[float, float]:
    """Runs that wait at a rung of a sweep compare with those at the same rung: the furthest first, others last."""
    rung, value = number(run.record.metrics, "rung"), number(run.record.metrics, run.record.objective_metric)
    if run.record.status is not Status.pruned or rung is None or value is None:
        return 0.0, 0.0
    return -rung, value if run.record.objective_direction == "minimize" else -value


def in_common_units(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Losses per token of different tokenizers do not compare: such runs are ranked by nats per answer byte, and told.

    Runs that share a tokenizer and template, or did not measure it, are left as they are.
    """
    completed = [run for run in runs if run.record.status is Status.completed]
    tokenizers = {run.record.fingerprints.get("tokenizer") for run in completed}
    by_loss = all(run.record.objective_metric == EVAL_LOSS for run in completed)
    if len(tokenizers) < 2 or not by_loss or not all(NATS_PER_BYTE in run.record.metrics for run in completed):
        return runs, []
    note = f"tokenizers or templates differ: ranked by {NATS_PER_BYTE} (of the answers) instead of {EVAL_LOSS}"
    return [_with_objective(run, NATS_PER_BYTE) for run in runs], [note]


def _with_objective(run: Run, metric: str) -> Run:
    value = run.record.metrics.get(metric) if run.record.status is Status.completed else None
    return replace(run, record=replace(run.record, objective=value, objective_metric=metric))


def why_unranked(run: Run, metric: str, direction: str) -> str:
    """One line: the failure, why it was stopped, or the reason for which a completed run has no rank."""
    record = run.record
    if record.failure:
        return f"{record.failure.kind}: {record.failure.message}"
    if record.status is not Status.completed:
        return record.notes[-1] if record.notes else ""
    if (record.objective_metric, record.objective_direction) != (metric, direction):
        return f"its objective is {record.objective_metric} ({record.objective_direction})"
    return f"{record.objective_metric} is {record.objective}, not a finite number"


def _rankable(run: Run, metric: str, direction: str) -> bool:
    record = run.record
    same = (record.objective_metric, record.objective_direction) == (metric, direction)
    finite = isinstance(record.objective, int | float) and math.isfinite(record.objective)
    return record.status is Status.completed and same and finite


def _objective(runs: Sequence[Run]) -> tuple[str, str]:
    """The commonest objective, completed runs first; the alphabet decides a tie."""
    completed = [run for run in runs if run.record.status is Status.completed] or runs
    counts = Counter((run.record.objective_metric, run.record.objective_direction) for run in completed)
    return min(counts, key=lambda pair: (-counts[pair], pair)) if counts else (EVAL_LOSS, "minimize")


def _split(runs: Sequence[Run], key: Callable[[Run], tuple[Any, ...]]) -> list[list[Run]]:
    """Runs with an equal key together, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _one_per_seed(runs: Sequence[Run]) -> list[Run]:
    """A repeated seed is no second opinion: counting it would fake a spread of zero. The newest run counts."""
    by_age = sorted(runs, key=lambda run: run.record.finished_at or "")
    return sorted({run.seeds: run for run in by_age}.values(), key=lambda run: run.folder.path)


def _noise(cells: Sequence[Cell]) -> Noise | None:
    pooled = pooled_variance([cell.objectives for cell in cells])
    return Noise(math.sqrt(pooled[0]), pooled[1]) if pooled else None


def _in_order(cells: list[Cell], direction: str) -> list[Cell]:
    sign = 1 if direction == "minimize" else -1
    return sorted(cells, key=lambda cell: (sign * cell.mean, _eval_loss(cell), cell.runs[0].folder.path))


def _eval_loss(cell: Cell) -> float:
    losses = [number(run.record.metrics, EVAL_LOSS) for run in cell.runs]
    known = [loss for loss in losses if loss is not None]
    return mean(known) if known else math.inf


def _ties(ordered: list[Cell], metric: str) -> list[str]:
    """A note when the objective does not tell the best from others."""
    tied = sum(cell.mean == ordered[0].mean for cell in ordered)
    if tied < 2:
        return []
    order = "; among them the lower eval/loss comes first" if metric != EVAL_LOSS else ""
    who = f"all {tied}" if tied == len(ordered) else f"{tied} of {len(ordered)}"
    return [f"{who} configurations share the best {metric}, {ordered[0].mean:.4g}: it does not tell them apart{order}"]


def _same_budget(one: Cell, other: Cell) -> bool:
    """Whether two configurations were given about as many tokens. One that may stop by itself has no fixed number."""
    few, many = sorted((_tokens(one), _tokens(other)))
    return many <= few * SAME_BUDGET


def _tokens(cell: Cell) -> float:
    counts = [number(run.record.metrics, "tokens") for run in cell.runs]
    known = [count for count in counts if count is not None]
    stops = any(run.values.get("train.early_stopping_patience") is not None for run in cell.runs)
    return 0.0 if stops or not known else mean(known)


def _ranked(ordered: list[Cell], ranks: list[int], alike: list[Cell], noise: Noise | None) -> list[Cell]:
    """The cells with their rank, and those as long trained as the best with their verdict."""
    return [
        replace(
            cell,
            rank=rank,
            within_noise=_indistinguishable(ordered[0], cell, noise, len(alike)) if cell in alike else None,
        )
        for rank, cell in zip(ranks, ordered, strict=True)
    ]


def _indistinguishable(best: Cell, cell: Cell, noise: Noise | None, num_cells: int) -> bool | None:
    """Whether ``cell`` cannot be told from ``best`` among ``num_cells`` (see the module's text); None: unknown."""
    if cell is best:
        return True
    if noise is None:
        return None
    quantile = student_quantile(1 - SIGNIFICANCE / (num_cells * (num_cells - 1)), noise.degrees_of_freedom)
    error = math.sqrt(sum(max(noise.standard_deviation, one.spread or 0) ** 2 / len(one.runs) for one in (best, cell)))
    return abs(cell.mean - best.mean) <= quantile * error
