"""The study by itself: which points it proposes, and that looking at it leaves it alone."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from sft_experiments.errors import ConfigError
from sft_experiments.sweep.search.study import STUDY_FILE, look_at_trials, open_study, point_of, propose
from sft_experiments.sweep.space import Dimension, Interval, Listed, drawn_point

SPACE: dict[str, Dimension] = {
    "train.learning_rate": Interval(1e-5, 1e-3, log=True),
    "scheduler": Listed(("cosine", "linear")),
}


def proposed(folder: Path, scores: list[float], seed: int = 0) -> list[dict[str, str]]:
    """The points of a study that is told ``scores``, one after the other."""
    study = open_study(folder, "grid", "minimize", "eval/loss")
    for number, score in enumerate(scores):
        propose(study, SPACE, seed, number)
        study.tell(number, score)
    return [point_of(one, SPACE) for one in study.get_trials()]


def test_a_study_begins_as_a_random_search_and_then_follows_seed_and_scores(tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.7, 0.2]
    points = proposed(tmp_path / "first", scores)
    assert points[:5] == [drawn_point(SPACE, 0, number) for number in range(5)]
    assert points == proposed(tmp_path / "again", scores)
    assert points[5:] != proposed(tmp_path / "other scores", [*scores[4::-1], *scores[5:]])[5:]
    assert points != proposed(tmp_path / "other seed", scores, seed=1)
    assert all(1e-5 <= float(point["train.learning_rate"]) <= 1e-3 for point in points)


def test_a_proposal_is_in_the_study_as_a_whole(tmp_path: Path) -> None:
    propose(open_study(tmp_path, "grid", "minimize", "eval/loss"), SPACE, 0, 0)
    (one,) = look_at_trials(tmp_path)
    assert (one.state, set(one.params)) == (TrialState.RUNNING, set(SPACE))


def test_looking_at_a_study_changes_nothing(tmp_path: Path) -> None:
    assert look_at_trials(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    proposed(tmp_path, [0.5, 0.4])
    before = (tmp_path / STUDY_FILE).read_bytes()
    assert [one.value for one in look_at_trials(tmp_path)] == [0.5, 0.4]
    assert (tmp_path / STUDY_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STUDY_FILE]


def test_a_study_of_another_space_is_refused_but_an_interval_may_change(tmp_path: Path) -> None:
    proposed(tmp_path, [0.5])
    (one,) = look_at_trials(tmp_path)
    wider = {**SPACE, "train.learning_rate": Interval(1e-6, 1e-2, log=True)}
    assert point_of(one, wider) == point_of(one, SPACE)
    with pytest.raises(ConfigError, match="another space"):
        point_of(one, {**SPACE, "scheduler": Listed(("cosine",))})
    with pytest.raises(ConfigError, match=r"it searches scheduler, train\.learning_rate"):
        point_of(one, {"scheduler": SPACE["scheduler"]})


def test_a_folder_keeps_its_study_when_the_sweep_is_named_anew(tmp_path: Path) -> None:
    proposed(tmp_path, [0.5])
    assert len(open_study(tmp_path, "another name", "minimize", "eval/loss").get_trials()) == 1
