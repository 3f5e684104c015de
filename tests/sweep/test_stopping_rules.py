"""Rules of early stopping, driven over random scores, with several trials at once that end in any order."""

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.schema import EarlyStopping
from sft_experiments.sweep.stopping_rules import RULES, Standings, asha, halving, median


@dataclass
class Race:
    """A sweep whose scores are known before: ``curves`` are by trial, at each rung."""

    rule: EarlyStopping
    curves: dict[str, list[float]]
    factor: float
    slots: int
    failing: frozenset[str] = frozenset()  # on their way to the second rung, or from the only one
    passed: dict[str, list[float]] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    training: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rungs = len(next(iter(self.curves.values())))
        self.passed = {trial: [] for trial in self.curves}

    def standings(self) -> Standings:
        passed = {trial: list(scores) for trial, scores in self.passed.items()}
        return Standings(passed, set(self.training), set(self.completed), self.rungs, self.factor)

    def decisions(self, source: random.Random) -> Iterator[tuple[str, Standings]]:
        """Every decision with what was known when it was made, until there is none left."""
        while True:
            while len(self.training) < self.slots and (trial := RULES[self.rule](self.standings())) is not None:
                assert trial not in self.training | dict.fromkeys(self.completed)
                yield trial, self.standings()
                self.training[trial] = None
            if not self.training:
                return
            self.end(source.choice(list(self.training)))

    def end(self, trial: str) -> None:
        del self.training[trial]
        height = len(self.passed[trial])
        if trial in self.failing and height == 1:
            del self.passed[trial]
        elif height == self.rungs:
            self.completed.add(trial)
        else:
            self.passed[trial].append(self.curves[trial][height])


SCORES = st.integers(0, 9).map(float)  # few values, so that many are equal


@st.composite
def races(draw: st.DrawFn, rule: EarlyStopping) -> Race:
    rungs, trials = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    curves = {f"t{n}": draw(st.lists(SCORES, min_size=rungs, max_size=rungs)) for n in range(trials)}
    failing = frozenset(draw(st.sets(st.sampled_from(sorted(curves)), max_size=2)))
    return Race(rule, curves, draw(st.sampled_from([1.5, 2.0, 3.0, 4.0])), draw(st.integers(1, 4)), failing)


@given(races(EarlyStopping.asha), st.randoms(use_true_random=False))
def test_asha_promotes_nothing_outside_of_the_best_share_that_is_known(race: Race, source: random.Random) -> None:
    for trial, known in race.decisions(source):
        if height := len(known.scores[trial]):
            ranked = known.ranked(height - 1)
            assert ranked.index(trial) < max(1, len(ranked) // known.factor)


@given(races(EarlyStopping.halving), st.randoms(use_true_random=False))
def test_halving_decides_when_all_are_there(race: Race, source: random.Random) -> None:
    for trial, known in race.decisions(source):
        if height := len(known.scores[trial]):
            assert not any(len(known.scores[one]) < height for one in known.training), "one is on its way there"
            assert known.ranked(height - 1).index(trial) < max(1, -(-len(known.scores) // known.factor))


@given(races(EarlyStopping.median), st.randoms(use_true_random=False))
def test_the_median_rule_lets_only_the_better_half_go_on(race: Race, source: random.Random) -> None:
    for trial, known in race.decisions(source):
        if height := len(known.scores[trial]):
            others = [known.scores[one][height - 1] for one in known.ranked(height - 1) if one != trial]
            assert len(others) < 2 or known.scores[trial][-1] <= statistics.median(others)
            assert len(others) >= 2 or not known.training, "more may come"


@pytest.mark.parametrize("rule", EarlyStopping)
@given(data=st.data(), source=st.randoms(use_true_random=False))
def test_every_trial_is_looked_at_and_the_best_at_every_rung_gets_to_the_end(
    rule: EarlyStopping, data: st.DataObject, source: random.Random
) -> None:
    race = data.draw(races(rule))
    for _ in race.decisions(source):
        pass
    assert all(scores for scores in race.passed.values())
    if race.passed:
        assert race.completed
        leaders = [race.standings().ranked(rung)[0] for rung in range(race.rungs) if race.standings().ranked(rung)]
        assert len(set(leaders)) > 1 or leaders[0] in race.completed


@pytest.mark.parametrize("rule", EarlyStopping)
@given(data=st.data(), source=st.randoms(use_true_random=False))
def test_decisions_depend_on_nothing_but_the_standings(
    rule: EarlyStopping, data: st.DataObject, source: random.Random
) -> None:
    race = data.draw(races(rule))
    for trial, known in race.decisions(source):
        assert RULES[rule](known) == trial


@given(races(EarlyStopping.median))
def test_the_best_of_all_at_a_rung_is_never_stopped_by_the_median(race: Race) -> None:
    race.passed = {trial: curve[:1] for trial, curve in race.curves.items()}
    best = race.standings().ranked(0)[0]
    assert median(race.standings()) == best


def test_asha_promotes_as_soon_as_it_can_and_starts_a_new_trial_otherwise() -> None:
    first = {"a": [3.0], "b": [], "c": [], "d": []}
    assert asha(Standings(first, set(), set(), rungs=2, factor=3)) == "b"
    three = {"a": [3.0], "b": [1.0], "c": [2.0], "d": []}
    assert asha(Standings(three, set(), set(), rungs=2, factor=3)) == "b"
    assert asha(Standings(three, {"b"}, set(), rungs=2, factor=3)) == "d"
    high = {"a": [3.0, 3.0], "b": [1.0, 1.0], "c": [2.0, 2.0], "d": []}
    assert asha(Standings(high, set(), set(), rungs=2, factor=3)) == "b", "the highest rung first"


def test_a_trial_that_was_stopped_is_promoted_when_worse_ones_arrive() -> None:
    known = {"a": [1.0], "b": [2.0], "c": [3.0]}
    assert asha(Standings(known, set(), {"a"}, rungs=1, factor=3)) is None
    more = known | {"d": [4.0], "e": [5.0], "f": [6.0]}
    assert asha(Standings(more, set(), {"a"}, rungs=1, factor=3)) == "b"
    assert halving(Standings(more, set(), {"a"}, rungs=1, factor=3)) == "b"
    assert median(Standings(more, set(), {"a"}, rungs=1, factor=3)) == "b"
