"""Every rule of the gate: plant the fault, see the promised outcome, for each policy."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sft_experiments.config.hydra import conf_dir
from sft_experiments.data.gate import RULES, resolve_policies
from sft_experiments.errors import ConfigError, DataError
from sft_experiments.schema import Policy
from tests.data.conftest import chat, good_rows

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
NO_ROLE = {"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "y"}]}

PLANTED = {
    "unreadable_row": "not an object",
    "missing_column": {"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "y"}]},
    "no_messages": {"messages": None},
    "unknown_role": NO_ROLE,
    "empty_assistant_turn": chat("1 + 1 =", "  "),
    "empty_user_turn": chat(" ", "2"),
    "no_assistant_turn": chat("1 + 1 ="),
    "assistant_first": chat("hello", "1 + 1 =", "2", roles="aua"),
    "consecutive_users": chat("1 + 1 =", "or 1 + 2 =", "2", roles="uua"),
    "system_not_first": chat("1 + 1 =", "be brief", "2", roles="usa"),
    "tool_without_call": chat("1 + 1 =", "2", "2", roles="uta"),
    "duplicate_row": good_rows(1)[0],
    "placeholder": chat("capital of {{country}} ?", "x"),
    "control_token": chat("<|end|><|assistant|>yes", "no"),
}
CANNOT_STAY = {"unreadable_row", "missing_column", "no_messages", "unknown_role"}


def findings_of(report, rule):
    return [finding for finding in report.findings if finding["rule"] == rule]


@pytest.fixture
def prepare_with(prepare, write_jsonl):
    """Prepare 40 good rows and one planted row under one policy for its rule."""

    def run(rule, policy, row, **changes):
        file = write_jsonl([*good_rows(40), row])
        return prepare(train_files=[file], validation_fraction=0.0, rules={rule: policy}, **changes)

    return run


@pytest.mark.parametrize("rule", PLANTED)
def test_policy_error_refuses_with_the_rule_the_file_and_the_line(prepare_with, rule):
    with pytest.raises(DataError) as caught:
        prepare_with(rule, "error", PLANTED[rule])
    assert rule in str(caught.value) and "rows.jsonl:41" in str(caught.value) and "1 row" in str(caught.value)


@pytest.mark.parametrize("rule", PLANTED)
def test_policy_drop_leaves_the_row_out_and_counts_it(prepare_with, rule):
    report = prepare_with(rule, "drop", PLANTED[rule]).report
    assert report.splits["train"].rows == 40
    assert report.splits["train"].dropped == {rule: 1}
    assert findings_of(report, rule)[0]["count"] == 1


@pytest.mark.parametrize("rule", sorted(set(PLANTED) - CANNOT_STAY - {"no_assistant_turn", "empty_assistant_turn"}))
def test_policy_warn_keeps_the_row_and_counts_it(prepare_with, rule):
    report = prepare_with(rule, "warn", PLANTED[rule]).report
    assert report.splits["train"].rows == 41
    assert findings_of(report, rule)[0]["policy"] == "warn"


@pytest.mark.parametrize("rule", sorted(CANNOT_STAY))
def test_a_row_that_cannot_be_read_never_stays(prepare_with, rule):
    assert prepare_with(rule, "warn", PLANTED[rule]).report.splits["train"].rows == 40


def test_policy_ignore_says_nothing(prepare_with):
    report = prepare_with("duplicate_row", "ignore", PLANTED["duplicate_row"]).report
    assert report.splits["train"].rows == 41 and not report.findings


def test_only_the_same_question_with_the_same_answer_is_a_duplicate(prepare, write_jsonl):
    rows = [*good_rows(40), chat("0 + 1 =", "one"), chat("0 + 1 =", "1", "1 + 1 =", "2"), *good_rows(1)]
    report = prepare(train_files=[write_jsonl(rows)], validation_fraction=0.0, rules={"duplicate_row": "drop"}).report
    (finding,) = findings_of(report, "duplicate_row")
    assert report.splits["train"].rows == 42
    assert finding["count"] == 1 and "rows.jsonl:43" in finding["examples"][0]


def test_all_faults_are_shown_at_once(prepare, write_jsonl):
    file = write_jsonl([*good_rows(3), chat("a", " "), chat(" ", "b"), NO_ROLE])
    rules = {"empty_assistant_turn": "error", "empty_user_turn": "error", "unknown_role": "error"}
    with pytest.raises(DataError) as caught:
        prepare(train_files=[file], rules=rules)
    assert all(rule in str(caught.value) for rule in rules)


def test_a_validation_prompt_that_is_also_trained_is_dropped_from_validation(prepare, write_jsonl):
    train = write_jsonl(good_rows(20), "train.jsonl")
    validation = write_jsonl([*good_rows(1), *(chat(f"{n} + 2 =", str(n + 2)) for n in range(20))], "validation.jsonl")
    report = prepare(train_files=[train], validation_files=[validation]).report
    assert report.splits["train"].rows == 20
    assert report.splits["validation"].dropped == {"overlapping_prompt": 1}


def test_a_row_that_the_template_refuses_is_counted(prepare, write_jsonl, tokenizer):
    from copy import deepcopy

    strict = deepcopy(tokenizer)
    refuse = "{%- if messages[0]['content'] == 'no' -%}{{ raise_exception('I refuse') }}{%- endif -%}"
    strict.chat_template = refuse + tokenizer.chat_template
    file = write_jsonl([*good_rows(30), chat("no", "x")])
    report = prepare(strict, train_files=[file], validation_fraction=0.0).report
    assert report.splits["train"].dropped == {"template_error": 1}
    assert "I refuse" in findings_of(report, "template_error")[0]["examples"][0]


def test_more_drops_than_allowed_are_refused_with_the_cause(prepare, write_jsonl):
    file = write_jsonl([*good_rows(8), chat("a", ""), chat("b", "")])
    with pytest.raises(DataError, match=r"2 of 10 rows \(20%\) would be dropped[^\n]*\n.*empty_assistant_turn"):
        prepare(train_files=[file], validation_fraction=0.0)


def test_nothing_left_to_train_on_is_refused(prepare, write_jsonl):
    file = write_jsonl([chat("a", "")])
    with pytest.raises(DataError, match="no row is left to train on"):
        prepare(train_files=[file], validation_fraction=0.0, max_drop_fraction=1.0)


def test_the_defaults_name_every_rule_and_nothing_else():
    defaults = OmegaConf.load(Path(conf_dir()) / "dataset" / "base" / "source.yaml")
    assert sorted(defaults.rules) == sorted(RULES)


def test_an_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"rules\.duplicate_rows is not a rule; did you mean 'duplicate_row'"):
        resolve_policies({"duplicate_rows": Policy.warn})


def test_the_report_is_plain_json(prepare_with):
    report = prepare_with("duplicate_row", "warn", PLANTED["duplicate_row"]).report
    assert json.loads(json.dumps(report.as_json())) == report.as_json()


def test_a_tokenizer_that_drops_characters_is_pointed_out(prepare, write_jsonl, tokenizer):
    """The demo tokenizer without its byte alphabet forgets what it has not seen."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate("abcdefgh+=0123456789")}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    forgetful = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")
    forgetful.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    forgetful.chat_template = tokenizer.chat_template
    report = prepare(forgetful, train_files=[write_jsonl(good_rows(3))], validation_fraction=0.0).report
    assert "'<|user|>0 + 1 =" in findings_of(report, "lossy_tokens")[0]["examples"][0]


ODD = {
    "half a surrogate pair": (
        '{"messages": [{"role": "user", "content": "a\\ud800b"}, {"role": "assistant", "content": "2"}]}',
        "unreadable_row",
    ),
    "nested a thousand deep": ("[" * 100_000, "unreadable_row"),
    "a number with 5000 digits": ("9" * 5000, "unreadable_row"),
    "tool calls that are a number": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": 5}]}',
        "missing_column",
    ),
    "a part whose text is a number": (
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}',
        "missing_column",
    ),
    "a turn without role": ('{"messages": [{"content": "a"}]}', "unknown_role"),
    "an answer without width": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\u200b"}]}',
        "empty_assistant_turn",
    ),
    "an answer longer than anything": (json.dumps(chat("a", "x y " * 200_000)), "overlong"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_are_counted_and_never_crash(prepare, write_jsonl, name):
    line, rule = ODD[name]
    file = Path(write_jsonl(good_rows(30)))
    file.write_text(file.read_text() + line + "\n")
    rules = {"unreadable_row": "drop", "missing_column": "drop", "unknown_role": "drop"}
    report = prepare(train_files=[str(file)], validation_fraction=0.0, rules=rules).report
    assert report.splits["train"].dropped == {rule: 1}
    assert "rows.jsonl:31" in findings_of(report, rule)[0]["examples"][0]


def test_the_documented_policies_are_the_defaults():
    defaults = OmegaConf.load(Path(conf_dir()) / "dataset" / "base" / "source.yaml").rules
    lines = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8").splitlines()
    documented = {line.split("`")[1]: line.split("|")[-2].strip() for line in lines if line.startswith("| `")}
    assert {rule: documented.get(rule) for rule in defaults} == dict(defaults)
