"""The gate: counts what is wrong with the rows, keeps the first offenders, and applies each rule's policy.

Faults are collected over all rows before anything is refused, so one run of the gate shows everything there is to fix.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sft_experiments.data.formats import Conversation, Origin, RowFault
from sft_experiments.errors import ConfigError, DataError, nearest
from sft_experiments.schema import Policy

MAX_EXAMPLES = 3  # offending rows kept per rule and split


@dataclass
class Finding:
    """How often one rule was broken in one split."""

    rule: str
    split: str
    policy: Policy
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)  # (file:row, what)

    def as_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "meaning": MEANINGS[self.rule],
            "split": self.split,
            "policy": self.policy.value,
            "count": self.count,
            "examples": [f"{where}: {what}" for where, what in self.examples],
        }

    def __str__(self) -> str:
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        places: dict[str, list[str]] = {}
        for where, what in self.examples:
            places.setdefault(what, []).append(where)
        said = "; ".join(f"{', '.join(where)}: {what}" for what, where in places.items())
        return f"{self.split}: {rows}: {MEANINGS[self.rule]} ({self.rule}): {said}"


class Gate:
    """Collects faults and answers whether a faulty row stays."""

    def __init__(self, rules: Mapping[str, Policy]) -> None:
        self.policies = resolve_policies(rules)
        self._findings: dict[tuple[str, str, Policy], Finding] = {}

    def report(self, rule: str, split: str, origin: Origin, what: str) -> bool:
        """Count one fault. True: the row stays; False: it is left out."""
        policy = self.policies[rule]
        if policy is Policy.ignore:
            return True
        self.count(rule, split, origin, what, policy)
        return policy is Policy.warn

    def reject(self, rule: str, split: str, origin: Origin, what: str) -> None:
        """Count one row that cannot stay whatever the policy: there is nothing to train on."""
        refuse = self.policies[rule] is Policy.error
        self.count(rule, split, origin, what, Policy.error if refuse else Policy.drop)

    def count(self, rule: str, split: str, origin: Origin, what: str, policy: Policy) -> None:
        """Count one fault whose policy another key decides (``dataset.overlong``)."""
        finding = self._findings.setdefault((rule, split, policy), Finding(rule, split, policy))
        finding.count += 1
        if len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append((str(origin), what))

    def findings(self) -> list[Finding]:
        """Errors first, then drops, then warnings; the most frequent first."""
        severity = [Policy.error, Policy.drop, Policy.warn, Policy.ignore]
        return sorted(self._findings.values(), key=lambda finding: (severity.index(finding.policy), -finding.count))

    def dropped(self, split: str) -> int:
        """Rows of a split left out so far."""
        return sum(self.dropped_by_rule(split).values())

    def dropped_by_rule(self, split: str) -> dict[str, int]:
        """Rule -> rows of a split left out so far."""
        return {f.rule: f.count for f in self.findings() if f.split == split and f.policy is Policy.drop}

    def refuse_errors(self) -> None:
        """Raise ``DataError`` with every finding whose policy is error."""
        errors = [finding for finding in self.findings() if finding.policy is Policy.error]
        if errors:
            settings = dict.fromkeys(f"dataset.rules.{finding.rule}=drop" for finding in errors)
            advice = f"Correct the data, or leave such rows out: {' '.join(settings)}"
            raise DataError("\n".join([*map(str, errors), advice]))

    def refuse_drops(self, split: str, num_kept: int, max_drop_fraction: float, advice: str) -> None:
        """Raise ``DataError`` with the causes when more than ``max_drop_fraction`` of a split's rows were left out."""
        dropped = self.dropped(split)
        num_rows = num_kept + dropped
        if dropped <= max_drop_fraction * num_rows:
            return
        causes = [f for f in self.findings() if f.split == split and f.policy is Policy.drop]
        raise DataError(
            f"{split}: {dropped} of {num_rows} rows ({dropped / num_rows:.0%}) would be dropped, more than "
            f"dataset.max_drop_fraction={max_drop_fraction:g}\n" + "\n".join(map(str, causes)) + advice
        )


RULES: dict[str, str] = {
    "unreadable_row": "the line is not JSON, is cut, or is not an object",
    "missing_column": "a column that the format needs is missing, null or of the wrong type",
    "no_messages": "the list of turns is missing, null, empty or a string",
    "unknown_role": "a role that dataset.role_names does not map to system, user, assistant or tool",
    "empty_assistant_turn": "an assistant turn without text and without tool calls",
    "empty_user_turn": "a user turn without text",
    "no_assistant_turn": "nothing to learn: no assistant turn",
    "assistant_first": "the assistant speaks before any user turn",
    "consecutive_users": "two user turns in a row",
    "system_not_first": "a system turn after the start",
    "tool_without_call": "a tool turn that answers no tool call",
    "duplicate_row": "the same row again",
    "overlapping_prompt": "a validation or test row whose prompt is also in train; dropped there, never from train",
    "placeholder": "an unfilled {{placeholder}}",
    "control_token": "text that the tokenizer turns into one of its control tokens",
    "template_error": "the chat template refuses the row",
    "unproven_mask": "the supervised tokens are not exactly the assistant's turns and their end tokens",
    "lossy_tokens": "the tokens do not decode to the text again: the tokenizer drops characters (sampled rows)",
    "answer_cut": "truncation or splitting takes an answer's end token away",
    "nothing_supervised": "no supervised token is left after truncation",
}


OVERLONG = "overlong"  # counted like a rule, but dataset.overlong says what happens
MEANINGS = RULES | {OVERLONG: "more than dataset.max_length tokens; dataset.overlong decides"}


def resolve_policies(configured: Mapping[str, Policy]) -> dict[str, Policy]:
    """Every rule with its policy. Raises ``ConfigError`` naming every unknown rule."""
    unknown = [name for name in configured if name not in RULES]
    if unknown:
        said = "; ".join(f"dataset.rules.{name} is not a rule{nearest(name, list(RULES))}" for name in unknown)
        raise ConfigError(f"{said}. Rules: {', '.join(RULES)}")
    return {name: Policy(configured.get(name, Policy.error)) for name in RULES}


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
