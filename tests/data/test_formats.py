import json

import pytest

from sft_experiments.data.formats import Origin, RowFault, read_conversation
from sft_experiments.schema import SourceConfig

HERE = Origin("rows.jsonl", 7)
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def read(row, format="messages", **source):
    return read_conversation(row, SourceConfig(format=format, **source), HERE)


EQUAL = {
    "messages": ({"messages": [USER, ASSISTANT]}, {}),
    "prompt_completion": ({"prompt": "hi", "completion": "hello"}, {}),
    "alpaca": ({"instruction": "hi", "input": "", "output": "hello"}, {}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"role_names": {"human": "user", "gpt": "assistant"}},
    ),
}


@pytest.mark.parametrize("format", EQUAL)
def test_every_chat_format_becomes_the_same_conversation(format):
    row, source = EQUAL[format]
    conversation = read(row, format, **source)
    assert conversation.messages == [USER, ASSISTANT]
    assert conversation.assistant_turns() == [1]


def test_columns_may_have_other_names():
    conversation = read({"q": "hi", "a": "hello"}, "prompt_completion", columns={"prompt": "q", "completion": "a"})
    assert conversation.messages == [USER, ASSISTANT]


def test_content_in_parts_is_joined_and_null_is_empty():
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    conversation = read({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]})
    assert [message["content"] for message in conversation.messages] == ["hi", ""]


def test_an_image_part_is_a_fault():
    with pytest.raises(RowFault, match="text parts"):
        read({"messages": [{"role": "user", "content": [{"type": "image"}]}]})


def test_only_the_completion_of_a_conversational_prompt_is_supervised():
    conversation = read({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}, "prompt_completion")
    assert conversation.assistant_turns() == [3]


def test_alpaca_input_stands_below_the_instruction():
    conversation = read({"instruction": "Add.", "input": "1 2", "output": "3"}, "alpaca")
    assert conversation.messages[0]["content"] == "Add.\n\n1 2"


@pytest.mark.parametrize("arguments", [{"city": "Oslo", "unit": None}, '{"city": "Oslo"}'])
def test_tool_call_arguments_may_be_an_object_or_json(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    message = read({"messages": [USER, turn]}).messages[1]
    assert message["tool_calls"][0]["function"]["arguments"]["city"] == "Oslo"
    assert "refusal" not in message  # templates print null


def test_arguments_that_are_not_json_are_a_fault():
    call = {"type": "function", "function": {"name": "weather", "arguments": "{city"}}
    with pytest.raises(RowFault, match="arguments of tool call 'weather'"):
        read({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})


def test_tools_may_be_json():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert read({"messages": [USER, ASSISTANT], "tools": json.dumps(tools)}).tools == tools


def test_the_system_prompt_is_added_only_where_there_is_none():
    added = read({"messages": [USER, ASSISTANT]}, system_prompt="Be brief.")
    assert [message["role"] for message in added.messages] == ["system", "user", "assistant"]
    kept = read({"messages": [{"role": "system", "content": "x"}, USER, ASSISTANT]}, system_prompt="Be brief.")
    assert kept.messages[0]["content"] == "x"


def test_the_system_prompt_moves_what_is_supervised_along():
    conversation = read({"prompt": "hi", "completion": "hello"}, "prompt_completion", system_prompt="Be brief.")
    assert conversation.assistant_turns() == [2]


FAULTS = {
    "no column": ({"text": "x"}, "messages", "no_messages", "columns: text"),
    "null list": ({"messages": None}, "messages", "no_messages", "null"),
    "a string": ({"messages": "hi"}, "messages", "no_messages", "str"),
    "empty list": ({"messages": []}, "messages", "no_messages", "empty list"),
    "a turn that is a string": ({"messages": ["hi"]}, "messages", "no_messages", "a turn is str"),
    "unknown role": ({"messages": [{"role": "bot", "content": "x"}]}, "messages", "unknown_role", "role_names.bot"),
    "unmapped sharegpt role": ({"conversations": [{"from": "gpt", "value": "x"}]}, "sharegpt", "unknown_role", "gpt"),
    "no prompt": ({"question": "x", "completion": "y"}, "prompt_completion", "missing_column", "columns: question"),
    "null completion": ({"prompt": "x", "completion": None}, "prompt_completion", "missing_column", "is null"),
    "number as text": ({"text": 3}, "text", "missing_column", "is int"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_row_of_another_shape_is_a_fault_that_says_what_it_has(name):
    row, format, rule, said = FAULTS[name]
    with pytest.raises(RowFault) as caught:
        read(row, format)
    assert caught.value.rule == rule and said in caught.value.what
