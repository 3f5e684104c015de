"""Checks of one conversation, before anything is rendered. Each yields ``RowFault`` for every rule that is broken."""

import re
from collections.abc import Iterator
from itertools import pairwise

from sft_experiments.data.conversation import Conversation, RowFault

PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_][\w. ]*\}\}")


BLANK = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*")  # white space and characters without width


def check_conversation(conversation: Conversation, control_tokens: re.Pattern[str]) -> Iterator[RowFault]:
    """Faults of one row: the order and content of its turns, and text that must not be there."""
    if conversation.text is not None:
        yield from _check_text(conversation.text, "text", control_tokens)
        return
    yield from _check_order(conversation)
    for index, message in enumerate(conversation.messages):
        where, content = f"turn {index + 1} ({message['role']})", message["content"]
        if BLANK.fullmatch(content):
            yield from _check_empty(message, where)
        else:
            yield from _check_text(content, where, control_tokens)


def _check_order(conversation: Conversation) -> Iterator[RowFault]:
    roles = [message["role"] for message in conversation.messages]
    if not conversation.assistant_turns():
        yield RowFault("no_assistant_turn", "roles: " + ", ".join(roles))
        return
    if next(role for role in roles if role != "system") == "assistant":
        yield RowFault("assistant_first", "roles: " + ", ".join(roles[:4]))
    if "system" in roles[1:]:
        yield RowFault("system_not_first", f"turn {roles.index('system', 1) + 1} is system")
    for index, (before, role) in enumerate(pairwise(roles)):
        if before == role == "user":
            yield RowFault("consecutive_users", f"turns {index + 1} and {index + 2} are both user")
            break
    yield from _check_tool_turns(conversation)


def _check_tool_turns(conversation: Conversation) -> Iterator[RowFault]:
    called = False
    for index, message in enumerate(conversation.messages):
        if message["role"] == "tool" and not called:
            yield RowFault("tool_without_call", f"turn {index + 1} is tool, and no assistant turn before it calls one")
            return
        called = bool(message.get("tool_calls")) or (called and message["role"] == "tool")


def _check_empty(message: dict[str, object], where: str) -> Iterator[RowFault]:
    said = "empty" if message["content"] == "" else "blank"
    if message["role"] == "assistant" and not message.get("tool_calls"):
        yield RowFault("empty_assistant_turn", f"{where} is {said}")
    elif message["role"] == "user":
        yield RowFault("empty_user_turn", f"{where} is {said}")


def _check_text(text: str, where: str, control_tokens: re.Pattern[str]) -> Iterator[RowFault]:
    if match := control_tokens.search(text):
        yield RowFault("control_token", f"{where} holds {match.group()!r}")
    if match := PLACEHOLDER.search(text):
        yield RowFault("placeholder", f"{where} holds {match.group()!r}")


def control_token_pattern(tokens: list[str]) -> re.Pattern[str]:
    """Matches any control token of a tokenizer in plain text; matches nothing when there are none."""
    longest_first = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
