"""How the assistant's text is found, whatever the template; and that a template that hides it is refused."""

import importlib.util
from pathlib import Path

import pytest

from sft_experiments.data.encode import Encoder
from sft_experiments.data.formats import Conversation, Origin, RowFault
from sft_experiments.data.proof import MaskProof
from sft_experiments.data.template import shipped_names, shipped_template
from sft_experiments.errors import ConfigError, ModelError
from sft_experiments.schema import TrainOn
from tests.data.conftest import chat, encoded

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("template_matrix", ROOT / "benchmarks" / "template_matrix.py")
assert spec is not None
assert spec.loader is not None
matrix = importlib.util.module_from_spec(spec)
spec.loader.exec_module(matrix)

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": 'Os"lo', "days": 2}}}
TOOL_MESSAGES = [{"role": "user", "content": "cold ?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]


def supervised(name, messages, train_on=TrainOn.assistant, **fields):
    """The characters that the loss sees, and how they were found."""
    encoder = Encoder(matrix.build_tokenizer(shipped_template(name)), train_on)
    row = encoded(encoder, Conversation(messages, Origin("rows", 1), **fields))
    assert MaskProof(encoder.tokenizer, train_on).fault(row) is None
    return [row.text[start:end] for start, end in row.spans], row.method


DIALOGUE = chat("one", "two", "three", "four")["messages"]


def test_markers_are_used_where_the_template_has_them():
    assert supervised("chatml", DIALOGUE) == (["two<|im_end|>", "four<|im_end|>"], "markers")


def test_a_training_twin_is_used_where_its_text_equals_the_stock_text():
    spans, method = supervised("qwen2_5", DIALOGUE)
    assert method == "training twin"
    assert [span.strip() for span in spans] == ["two<|im_end|>", "four<|im_end|>"]


def test_a_twin_that_prints_another_text_is_not_used():
    """Qwen3's twin keeps thinking blocks that the stock template drops from earlier turns."""
    with pytest.raises(RowFault, match=r"prints it differently once more turns follow.*qwen3_training"):
        supervised("qwen3", DIALOGUE)


def test_the_last_turn_alone_can_be_trained_on_a_template_that_rewrites_earlier_ones():
    spans, method = supervised("qwen3", DIALOGUE, TrainOn.last_assistant)
    assert method == "prefixes" and spans[0].endswith("four<|im_end|>") and "two" not in spans[0]


def test_prefixes_find_the_turns_of_llama_3_1_which_has_no_twin():
    assert supervised("llama3_1", DIALOGUE) == (["two<|eot_id|>", "four<|eot_id|>"], "prefixes")


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "gemma4"])
def test_an_assistant_that_speaks_first_is_supervised_without_its_header(name):
    spans, method = supervised(name, chat("hello", "one", "two", roles="aua")["messages"])
    assert method == "prefixes" and spans[0].startswith("hello") and len(spans) == 2


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "llama3_1"])
def test_last_assistant_supervises_the_last_turn_only(name):
    spans, _ = supervised(name, DIALOGUE, TrainOn.last_assistant)
    assert len(spans) == 1 and "four" in spans[0]


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "llama3_1"])
def test_turns_of_a_conversational_prompt_are_not_supervised(name):
    spans, _ = supervised(name, DIALOGUE, first_supervised=3)
    assert len(spans) == 1 and "four" in spans[0]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "deepseekv3_training", "glm4moe_training"])
def test_tool_call_arguments_come_out_as_correct_text_whatever_the_family_wants(name):
    spans, _ = supervised(name, TOOL_MESSAGES)
    if name == "glm4moe_training":
        assert '<arg_key>city</arg_key>\n<arg_value>Os"lo</arg_value>' in spans[0]
    else:
        assert '{"city": "Os\\"lo", "days": 2}' in spans[0]


def test_every_template_of_trl_is_proven_or_refused_as_documented():
    outcomes = matrix.matrix()
    refusals = {outcome for row in outcomes.values() for outcome in row.values() if not matrix.is_proven(outcome)}
    assert {outcome.split(":")[0] for outcome in refusals} <= {
        "template_error",
        "unproven_mask",
        "empty_assistant_turn",
    }
    documented = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    if matrix.versions() in documented:  # the table holds for those versions; others print other texts
        assert matrix.as_markdown(outcomes) in documented, "run: python benchmarks/template_matrix.py --write"


def test_a_template_that_drops_the_assistants_text_is_refused():
    """Vision families loop over parts; given a string they print nothing."""
    encoder = Encoder(matrix.build_tokenizer(shipped_template("smolvlm")), TrainOn.assistant)
    row = encoded(encoder, Conversation(DIALOGUE, Origin("rows", 1)))
    assert "the template leaves it out" in str(MaskProof(encoder.tokenizer, TrainOn.assistant).fault(row))


def test_a_template_that_drops_reasoning_is_refused():
    messages = [DIALOGUE[0], {"role": "assistant", "content": "two", "reasoning_content": "because of that"}]
    encoder = Encoder(matrix.build_tokenizer(shipped_template("chatml")), TrainOn.assistant)
    row = encoded(encoder, Conversation(messages, Origin("rows", 1)))
    assert "because of that" in str(MaskProof(encoder.tokenizer, TrainOn.assistant).fault(row))
    assert "because of that" in supervised("qwen3", messages)[0][0]


def test_a_template_without_a_generation_prompt_hides_the_start_of_turns(tokenizer):
    bare = matrix.build_tokenizer("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}")
    with pytest.raises(RowFault, match="ignores add_generation_prompt"):
        encoded(Encoder(bare, TrainOn.assistant), Conversation(DIALOGUE, Origin("rows", 1)))


def test_markers_that_the_tokenizer_splits_are_refused(tokenizer):
    """A Llama-3-type template on a tokenizer that lacks its control tokens."""
    from copy import deepcopy

    foreign = deepcopy(tokenizer)
    foreign.chat_template = shipped_template("llama3_1")
    row = encoded(Encoder(foreign, TrainOn.assistant), Conversation(DIALOGUE, Origin("rows", 1)))
    assert "not in an end-of-turn token" in str(MaskProof(foreign, TrainOn.assistant).fault(row))


def test_a_base_model_without_template_is_told_which_ones_are_shipped(tokenizer):
    from copy import deepcopy

    base = deepcopy(tokenizer)
    base.chat_template = None
    with pytest.raises(ModelError, match=r"model\.chat_template=plain"):
        Encoder(base, TrainOn.assistant).encode([Conversation(DIALOGUE, Origin("rows", 1))])


def test_the_plain_template_ends_turns_with_the_tokenizers_own_end_token(tokenizer):
    from copy import deepcopy

    base = deepcopy(tokenizer)
    base.chat_template = shipped_template("plain")
    row = encoded(Encoder(base, TrainOn.assistant), Conversation(DIALOGUE, Origin("rows", 1)))
    assert row.text == "User: one\nAssistant: two<|end|>\nUser: three\nAssistant: four<|end|>\n"
    assert MaskProof(base, TrainOn.assistant).fault(row) is None


def test_an_unknown_template_name_is_refused_with_the_nearest():
    assert {"chatml", "plain", "qwen3", "qwen3_training"} <= set(shipped_names())
    with pytest.raises(ConfigError, match="did you mean 'chatml'"):
        shipped_template("chatlm")
