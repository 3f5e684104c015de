"""max_length in numbers: what is dropped, cut or split is always counted."""

import pytest

from sft_experiments.errors import DataError
from tests.data.conftest import chat

# Ten short rows; one whose answer is cut at 24 tokens; one whose whole answer is beyond them.
SHORT = [chat(f"{number} + 1 =", str(number + 1)) for number in range(10)]
CUT = chat("sort: 9 8 7", "7 8 9 " * 20)
GONE = chat("sort: " + "9 8 7 " * 20, "7 8 9")


@pytest.fixture
def prepare_long(prepare, write_jsonl):
    def run(overlong, **changes):
        file = write_jsonl([*SHORT, CUT, GONE])
        changes = {"max_drop_fraction": 0.5, **changes}
        return prepare(train_files=[file], validation_fraction=0.0, max_length=24, overlong=overlong, **changes)

    return run


def counts(report):
    return {finding["rule"]: (finding["policy"], finding["count"]) for finding in report.findings}


def test_drop_leaves_long_rows_out(prepare_long):
    report = prepare_long("drop").report
    assert report.splits["train"].rows == 10
    assert report.splits["train"].dropped == {"overlong": 2}
    assert report.splits["train"].rows_with_end_token == 10


def test_truncate_keeps_the_start_and_counts_what_is_lost(prepare_long):
    prepared = prepare_long("truncate")
    assert counts(prepared.report) == {
        "overlong": ("warn", 2),
        "answer_cut": ("warn", 1),
        "nothing_supervised": ("drop", 1),
    }
    assert prepared.report.splits["train"].rows_with_end_token == 10  # of 11 rows
    assert max(map(len, prepared.train["input_ids"])) == 24


def test_truncated_answers_can_be_dropped(prepare_long):
    report = prepare_long("truncate", rules={"answer_cut": "drop"}).report
    assert report.splits["train"].rows == 10


def test_split_loses_no_supervised_token(prepare_long, prepare, write_jsonl):
    whole = prepare(train_files=[write_jsonl([*SHORT, CUT, GONE])], validation_fraction=0.0, max_length=1000)
    split = prepare_long("split")
    assert split.report.splits["train"].supervised_tokens >= whole.report.splits["train"].supervised_tokens - 6
    assert max(map(len, split.train["input_ids"])) <= 24
    assert counts(split.report)["answer_cut"] == ("warn", 1)


def test_too_many_long_rows_are_refused_with_the_length_that_would_do(prepare_long):
    with pytest.raises(DataError, match=r"2 of 12 rows \(17%\)[\s\S]*10 of 12 rows fit[\s\S]*all up to 1\d\d"):
        prepare_long("drop", max_drop_fraction=0.1)


def test_when_every_answer_is_cut_off_training_is_refused(prepare, write_jsonl):
    file = write_jsonl([GONE])
    with pytest.raises(DataError, match=r"no supervised token is left|no row is left"):
        prepare(train_files=[file], validation_fraction=0.0, max_length=24, overlong="truncate", max_drop_fraction=1.0)
