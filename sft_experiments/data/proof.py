"""The mask proof: the supervised tokens, decoded, are the assistant's turns with their end tokens and nothing else.

It looks at content, not at positions or markers, so a wrong template, a wrong marker and a tokenizer that joins text
across a boundary are all found the same way.
"""

import re
from typing import Any, Optional

from transformers import PreTrainedTokenizerBase

from sft_experiments.data.conversation import Conversation, Message
from sft_experiments.data.encode import IGNORED, Encoded, supervised_turns
from sft_experiments.schema import TrainOn

# Text that a template may put inside an assistant turn beside the content: think tags, tool-call wrappers, end tokens.
MAX_TEMPLATE_TEXT = 120  # characters per turn; gpt-oss channels are the longest seen


class MaskProof:
    """Checks encoded rows for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> None:
        self._tokenizer = tokenizer
        self._train_on = train_on
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        self._end_tokens = added | ({tokenizer.eos_token_id} - {None})
        self._blank: dict[int, bool] = {}
        self.num_decoded = 0
        self.end_of_turn_ids: set[int] = set()  # the end tokens seen: generation must stop at them

    def fault(self, row: Encoded, decode: bool = True) -> Optional[str]:
        """What is wrong with the row's mask, or None. ``decode=False`` leaves out the slower comparison of tokens."""
        if row.method == "all":
            return self._fault_of_text(row)
        turns = supervised_turns(row.conversation, self._train_on)
        return (
            _fault_of_turns(row, turns)
            or _fault_of_others(row, turns)
            or self._fault_of_ends(row)
            or (self._fault_of_tokens(row) if decode else None)
        )

    def _fault_of_text(self, row: Encoded) -> Optional[str]:
        for index, message in enumerate(row.conversation.messages):
            if squash(message["content"]) not in squash(row.text):
                return f"the template leaves out turn {index + 1} ({message['role']})"
        return None

    def _fault_of_ends(self, row: Encoded) -> Optional[str]:
        """Each run of supervised tokens must end in an end token, or the model never learns to stop."""
        supervised = row.labels != IGNORED
        ends = [i for i in supervised.nonzero()[0] if i + 1 == len(supervised) or not supervised[i + 1]]
        if not ends:
            return "no token is supervised"
        for end in ends:
            token = self._last_token(row, int(end))
            if token not in self._end_tokens:
                return f"an assistant turn ends in {self._tokenizer.decode([token])!r}, not in an end-of-turn token"
            self.end_of_turn_ids.add(token)
        return None

    def _last_token(self, row: Encoded, end: int) -> int:
        """The supervised token at ``end``, or the nearest one before it that is not only white space."""
        position = end
        while position > 0 and row.labels[position] != IGNORED and self._is_blank(int(row.input_ids[position])):
            position -= 1
        return int(row.input_ids[position])

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self._tokenizer.decode([token]).strip()
        return self._blank[token]

    def _fault_of_tokens(self, row: Encoded) -> Optional[str]:
        """The supervised ids must decode to the supervised text, as the tokenizer itself would reproduce it."""
        self.num_decoded += 1
        expected = "".join(row.text[start:end] for start, end in row.spans)
        decoded: Any = self._tokenizer.decode(row.input_ids[row.labels != IGNORED])
        if squash(decoded) == squash(expected):
            return None
        again: Any = self._tokenizer.decode(self._tokenizer(expected, add_special_tokens=False)["input_ids"])
        if squash(decoded) == squash(again):  # the tokenizer normalises text; the same tokens are supervised
            return None
        return f"a token joins the assistant's text with what is beside it: {decoded[:30]!r} for {expected[:30]!r}"


def squash(text: str) -> str:
    """Without white space: templates trim and tokenizers add spaces."""
    return re.sub(r"\s+", "", text)


def _fault_of_turns(row: Encoded, turns: list[int]) -> Optional[str]:
    """Every supervised turn's content stands in the supervised text, in order, with little beside it."""
    supervised = "".join(row.text[start:end] for start, end in row.spans)
    cursor, contents, squashed = 0, 0, squash(supervised)
    for number, turn in enumerate(turns):
        message = row.conversation.messages[turn]
        for part in _parts(message, is_last=number == len(turns) - 1):
            found = squashed.find(squash(part), cursor)
            if found < 0:
                return f"turn {turn + 1} (assistant): {part[:40]!r} is not supervised"
            cursor = found + len(squash(part))
            contents += len(squash(part))
        if message.get("tool_calls"):
            contents += len(squash(str(message["tool_calls"]))) * 2  # the call's own syntax varies by family
        contents += len(squash(str(message.get("reasoning_content") or "")))
    if len(squashed) - contents > MAX_TEMPLATE_TEXT * max(1, len(turns)):
        return f"{len(squashed) - contents} characters that are not the assistant's are supervised"
    return None


def _parts(message: Message, is_last: bool) -> list[str]:
    """Texts of a turn that must be supervised, in the order templates print them."""
    reasoning = message.get("reasoning_content") or message.get("thinking") or message.get("reasoning") or ""
    parts = [str(reasoning)] if reasoning and is_last else []  # thinking templates drop it from earlier turns
    parts.append(message["content"])
    parts.extend(call["function"]["name"] for call in message.get("tool_calls", []))
    return [part for part in parts if part.strip()]


def _fault_of_others(row: Encoded, turns: list[int]) -> Optional[str]:
    """System, user and tool turns stand, in order, in the text that is not supervised."""
    edges = [0, *[edge for span in row.spans for edge in span], len(row.text)]
    gaps = [row.text[start:end] for start, end in zip(edges[::2], edges[1::2])]
    squashed, cursor = squash("\0".join(gaps)), 0
    for index, message in enumerate(row.conversation.messages):
        if message["role"] == "assistant" or not message["content"].strip():
            continue
        found = squashed.find(squash(message["content"]), 0 if message["role"] == "tool" else cursor)
        if found < 0:
            return f"turn {index + 1} ({message['role']}): {message['content'][:40]!r} is supervised or left out"
        cursor = found
    return None
