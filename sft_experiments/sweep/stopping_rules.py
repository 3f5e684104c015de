"""Which trial of a sweep trains on: rules over the scores at rungs, one small function each.

A rung is a place in the training where all trials have read equally many tokens. Every job takes one trial to its next
rung, or from the last rung to the end. A rule names the next job's trial from nothing but the scores that are there, so
a sweep that was stopped goes on with the same decisions. No trial is given up: one that waits at a rung goes on when
what arrives later is worse.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Optional

from sft_experiments.schema import EarlyStopping

ENOUGH_OTHERS = 2  # the median of fewer scores says nothing


@dataclass(frozen=True)
class Standings:
    """What is known when a place is free. Trials that failed are not among them."""

    scores: Mapping[str, list[float]]  # of each trial at the rungs it has passed, smaller is better; in starting order
    training: AbstractSet[str]
    completed: AbstractSet[str]
    rungs: int  # before the end
    factor: float

    def ranked(self, rung: int) -> list[str]:
        """The trials that have passed a rung, best first; of equal ones the first to start."""
        passed = [trial for trial, scores in self.scores.items() if len(scores) > rung]
        return sorted(passed, key=lambda trial: self.scores[trial][rung])

    def ready(self, trials: Iterable[str], passed: int) -> Optional[str]:
        """The first of ``trials`` that waits after so many rungs."""
        busy = self.training | self.completed
        return next((one for one in trials if one not in busy and len(self.scores[one]) == passed), None)


Rule = Callable[[Standings], Optional[str]]


def halving(now: Standings) -> Optional[str]:
    """Synchronous: all are waited for at a rung, then the best 1 / factor of them go on, rounded up."""
    group = list(now.scores)
    for rung in range(now.rungs):
        if (trial := now.ready(group, rung)) is not None:
            return trial
        if any(len(now.scores[one]) <= rung for one in group if one in now.training):
            return None
        group = [one for one in now.ranked(rung) if one in group][: math.ceil(len(group) / now.factor)]
    return now.ready(group, now.rungs)


def asha(now: Standings) -> Optional[str]:
    """Asynchronous successive halving (Li et al. 2020, https://arxiv.org/abs/1810.05934).

    The best trial that waits among the top 1 / factor of those that passed the highest rung, rounded down, goes on,
    else one of the rung below; else a new one begins.
    When that leaves nothing to do, the best at the highest rung goes on, so that some trial gets to the end.
    """
    rungs = list(reversed(range(now.rungs)))
    for rung in rungs:
        ranked = now.ranked(rung)
        if (trial := now.ready(ranked[: math.floor(len(ranked) / now.factor)], rung + 1)) is not None:
            return trial
    new = now.ready(now.scores, 0)
    if new is not None or now.training:
        return new
    leaders = (now.ready(now.ranked(rung)[:1], rung + 1) for rung in rungs)
    return next((leader for leader in leaders if leader is not None), None)


def median(now: Standings) -> Optional[str]:
    """A trial goes on unless it is worse than the median of the others that have passed its rung.

    Trials can wait, so all of them get to a rung before the first goes on: early ones need no benefit of the doubt.
    """
    trial = now.ready(now.scores, 0)
    for rung in range(now.rungs):
        trial = trial or now.ready((one for one in now.ranked(rung) if not _held(one, rung, now)), rung + 1)
    return trial


def _held(trial: str, rung: int, now: Standings) -> bool:
    others = [now.scores[one][rung] for one in now.ranked(rung) if one != trial]
    if len(others) < ENOUGH_OTHERS:
        return bool(now.training)  # more may come
    return now.scores[trial][rung] > statistics.median(others)


RULES: dict[EarlyStopping, Rule] = {
    EarlyStopping.halving: halving,
    EarlyStopping.asha: asha,
    EarlyStopping.median: median,
}
