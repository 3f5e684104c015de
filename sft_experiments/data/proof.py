"""The mask proof: the supervised tokens, decoded, are the assistant's turns with their end tokens and nothing else.

It looks at content, not at positions or markers, so a wrong template, a wrong marker and a tokenizer that joins text
across a boundary are all found the same way. Text is compared without white space, which templates trim and tokenizers
add.
"""

from typing import Any, Optional

import numpy as np
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.encode import IGNORED, Encoded, supervised_turns
from sft_experiments.data.formats import Message
from sft_experiments.schema import TrainOn

# Characters that a template may print inside a turn beside its content: end tokens, think tags, channel names; gpt-oss
# prints the most of those that TRL ships, and its markers take in the turn's header too.
MAX_TEMPLATE_TEXT = 80


class MaskProof:
    """Checks encoded rows for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> None:
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._end_tokens = _possible_ends(tokenizer)
        self._blank: dict[int, bool] = {}
        self.num_decoded = 0
        self.end_of_turn_ids: set[int] = set()  # the end tokens seen: generation must stop at them

    def fault(self, row: Encoded, decode: bool = True) -> Optional[str]:
        """What is wrong with the row's mask, or None. ``decode=False`` leaves out the slower comparison of tokens."""
        if fault := self._fault_of_start(row):
            return fault
        if row.method == "all":
            return _fault_of_text(row)
        turns = supervised_turns(row.conversation, self._train_on)
        return (
            self._fault_of_turns(row, turns)
            or _fault_of_others(row)
            or self._fault_of_ends(row)
            or (self._fault_of_tokens(row) if decode else None)
        )

    def lost_text(self, row: Encoded) -> Optional[str]:
        """Where decoding the whole row first differs from its text (runs of white space count as one), or None."""
        text, decoded = " ".join(row.text.split()), " ".join(self._decode(row.input_ids).split())
        if text == decoded:
            return None
        at = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), len(decoded))
        start = max(0, at - 10)
        return f"{text[start : at + 20]!r} comes back as {decoded[start : at + 20]!r}"

    def _fault_of_start(self, row: Encoded) -> Optional[str]:
        bos = self._tokenizer.bos_token_id
        if bos is not None and list(row.input_ids[:2]) == [bos, bos]:
            return f"the row starts with two {self._tokenizer.bos_token!r} tokens (template and tokenizer both add one)"
        return None

    def _fault_of_turns(self, row: Encoded, turns: list[int]) -> Optional[str]:
        """Every supervised turn stands in the supervised text, in order, with little beside it."""
        supervised = squash("".join(row.text[start:end] for start, end in row.spans))
        rest, cursor = "", 0
        for turn in turns:
            message = row.conversation.messages[turn]
            for part in _parts(message, is_last=turn == turns[-1]):
                squashed = squash(part)
                found = supervised.find(squashed, cursor)
                if found < 0:
                    return f"turn {turn + 1} (assistant): {part[:40]!r} is not supervised: the template leaves it out"
                rest += supervised[cursor:found]
                cursor = found + len(squashed)
        rest += supervised[cursor:]
        allowed = sum(MAX_TEMPLATE_TEXT + _length_of_extras(row.conversation.messages[turn]) for turn in turns)
        if len(rest) > allowed:
            return f"{len(rest)} characters that are not the assistant's are supervised: {rest[:60]!r}"
        return None

    def _fault_of_ends(self, row: Encoded) -> Optional[str]:
        """Each run of supervised tokens must end in an end token, or the model never learns to stop."""
        supervised = row.labels != IGNORED
        is_end = supervised.copy()
        is_end[:-1] &= ~supervised[1:]
        ends = np.flatnonzero(is_end)
        if not len(ends):
            return "no token is supervised"
        for end in ends:
            token = self._last_token(row, int(end))
            if token not in self._end_tokens:
                said = self._decode([token])
                return (
                    f"an assistant turn ends in {said!r}, not in an end-of-turn token: the template prints none there, "
                    "or the tokenizer splits it"
                )
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
            self._blank[token] = not self._decode([token]).strip()
        return self._blank[token]

    def _decode(self, ids: Any) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _fault_of_tokens(self, row: Encoded) -> Optional[str]:
        """The supervised ids must decode to the supervised text, as the tokenizer itself would reproduce it."""
        self.num_decoded += 1
        expected = "".join(row.text[start:end] for start, end in row.spans)
        decoded = self._decode(row.input_ids[row.labels != IGNORED])
        if decoded == expected or squash(decoded) == squash(expected):
            return None
        again = self._decode(self._tokenizer(expected, add_special_tokens=False)["input_ids"])
        if squash(decoded) == squash(again):  # the tokenizer normalises text; the same tokens are supervised
            return None
        return f"a token joins the assistant's text with what is beside it: {decoded[:30]!r} for {expected[:30]!r}"


def _possible_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that can end a turn: the end token and added ones, but no closing tag such as </tool_call>."""
    added = tokenizer.added_tokens_decoder.items()
    ends = {index for index, token in added if token.special or not token.content.startswith("</")}
    return ends | ({tokenizer.eos_token_id} - {None})


def squash(text: str) -> str:
    """Without white space. Spaces, most of it in prose, go first: ``replace`` is three times as fast as ``split``."""
    return "".join(text.replace(" ", "").split())


def _fault_of_text(row: Encoded) -> Optional[str]:
    """Where every token is supervised, the text must hold every turn."""
    squashed = squash(row.text)
    for index, message in enumerate(row.conversation.messages):
        if squash(message["content"]) not in squashed:
            return f"the template leaves out turn {index + 1} ({message['role']})"
    return None


def _parts(message: Message, is_last: bool) -> list[str]:
    """Texts of a turn that must be supervised, in the order templates print them."""
    parts = [_reasoning(message)] if is_last else []  # thinking templates drop it from earlier turns
    parts.append(message["content"])
    parts.extend(call["function"]["name"] for call in message.get("tool_calls", []))
    return [part for part in parts if part.strip()]


def _reasoning(message: Message) -> str:
    return str(message.get("reasoning_content") or message.get("thinking") or message.get("reasoning") or "")


def _length_of_extras(message: Message) -> int:
    """Room for what a turn may print beside its parts: reasoning of earlier turns, the syntax of tool calls."""
    return len(_reasoning(message)) + 3 * len(str(message.get("tool_calls", "")))


def _fault_of_others(row: Encoded) -> Optional[str]:
    """System, user and tool turns stand, in order, in the text that is not supervised."""
    edges = [0, *[edge for span in row.spans for edge in span], len(row.text)]
    gaps = [row.text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    unsupervised, cursor = squash("\0".join(gaps)), 0
    for index, message in enumerate(row.conversation.messages):
        content = squash(message["content"])
        if message["role"] == "assistant" or not content:
            continue
        found = unsupervised.find(content, 0 if message["role"] == "tool" else cursor)  # tool results may be regrouped
        if found < 0:
            return f"turn {index + 1} ({message['role']}): {message['content'][:40]!r} is supervised or left out"
        cursor = found
    return None
