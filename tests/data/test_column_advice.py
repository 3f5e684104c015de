"""Columns that no row has are a wrong setting, and the error says which one would be right."""

import pytest

from sft_experiments.errors import DataError


@pytest.mark.parametrize(
    ("rows", "changes", "told"),
    [
        (
            [{"question": "a", "answer": "b"}] * 3,
            {"format": "prompt_completion"},
            "no row has a column 'prompt', 'completion', which the format prompt_completion needs; columns: question, "
            "answer; set dataset.columns.prompt=<column> dataset.columns.completion=<column>",
        ),
        ([{"instruction": "a", "output": "b"}], {"format": "messages"}, "or dataset=alpaca, which fits them"),
        ([{"prompt": "a", "completion": "b"}], {"format": "text", "train_on": "all"}, "or dataset=prompt_completion"),
    ],
)
def test_columns_that_no_row_has_are_answered_with_the_setting(prepare, write_jsonl, rows, changes, told):
    with pytest.raises(DataError) as refusal:
        prepare(train_files=[write_jsonl(rows)], **changes)
    assert told in str(refusal.value) and "=drop" not in str(refusal.value)


def test_a_column_that_only_some_rows_lack_is_a_matter_of_the_rule(prepare, write_jsonl):
    rows = [{"prompt": "1 + 1 =", "completion": "2"}, {"prompt": "1 + 2 ="}]
    with pytest.raises(DataError, match=r"leave such rows out: dataset\.rules\.missing_column=drop"):
        prepare(train_files=[write_jsonl(rows)], format="prompt_completion", rules={"missing_column": "error"})
