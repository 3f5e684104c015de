"""The verdicts of the sanity check, from numbers alone."""

import math

import pytest

from sft_experiments.data.formats import Answer
from sft_experiments.sanity.verdicts import garble_of, judge_answers, judge_end_probability, judge_loss, worst


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([3.0, 3.2, 2.9, 3.1], [2.0, 2.3, 1.8, 2.2], "pass"),
        ([3.0, 3.2, 2.9, 3.1], [4.0, 4.3, 3.8, 4.2], "fail"),  # rises
        ([3.0, 3.2, 2.9, 3.1], [2.9, 3.3, 2.8, 3.15], "warn"),  # within the noise
        ([3.0, 3.2], [3.0, 3.2], "fail"),  # nothing changed
        ([3.0, 3.2], [0.0, 0.0], "fail"),
        ([3.0, 3.2], [math.nan, 3.0], "fail"),
        ([math.inf, 3.2], [3.0, 3.0], "fail"),
    ],
)
def test_the_loss_must_fall_beyond_its_noise(before: list[float], after: list[float], verdict: str) -> None:
    assert judge_loss(before, after).verdict == verdict


def said(text: str, ids: list[int], ended: bool = True) -> Answer:
    return Answer("?", text, ids, ended)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (said("forty two", [5, 6]), None),
        (said("", []), "empty"),
        (said("", [1, 1, 2]), "only special tokens"),
        (said("ab ab ab ab", [7, 8] * 4), "repeats itself"),
        (said("on and on", [1, 2, 3, 4, 5, 6], ended=False), "does not end"),
    ],
)
def test_a_garbled_answer_is_told_from_a_good_one(answer: Answer, fault: str | None) -> None:
    assert garble_of(answer) == fault


def test_answers_that_were_garbled_before_do_not_count_against_the_training() -> None:
    good, garbled = said("yes", [5]), said("", [])
    rambling = judge_answers([garbled, garbled], [garbled, garbled])
    worse = judge_answers([good, garbled], [garbled, garbled])
    assert rambling is not None and rambling.verdict == "note" and "not informative" in rambling.found
    assert worst([rambling]) == "pass"
    assert worse is not None and worse.verdict == "warn"


def test_an_end_token_that_becomes_unlikely_is_pointed_out() -> None:
    falls, rises = judge_end_probability(0.5, 0.1), judge_end_probability(0.1, 0.4)
    assert falls is not None and falls.verdict == "warn"
    assert rises is not None and rises.verdict == "pass"
    assert judge_end_probability(None, None) is None
