"""The rules of the data gate: their names, one sentence each, and what happens to a row that breaks one.

Default policies stand in ``conf/dataset/base/source.yaml``; a rule that the config does not mention is an error.
"""

from collections.abc import Mapping

from sft_experiments.errors import ConfigError, nearest
from sft_experiments.schema import Policy

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
