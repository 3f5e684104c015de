"""One row in our own shape, whatever format it came in, and the place it came from."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

Message = dict[str, Any]  # role, content, and what templates read beside them: tool_calls, reasoning_content, name


class Origin(NamedTuple):
    """Where a row stands: a file and its line (JSONL) or its row, both counted from 1."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


class RowFault(Exception):
    """A row breaks a rule of the data gate (see rules.py). ``what`` is said in one phrase."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(rule, what)
        self.rule = rule
        self.what = what


@dataclass(slots=True)
class Conversation:
    """A row ready for the chat template; plain text has ``text`` and no messages."""

    messages: list[Message]
    origin: Origin
    tools: Optional[list[Any]] = None
    text: Optional[str] = None
    skill: Optional[str] = None  # a label that groups exact-match results
    first_supervised: int = 0  # assistant turns before this index are context (conversational prompts)
    weight: float = 1.0  # of its source in a mixture
    _prompt_digest: Optional[bytes] = field(default=None, init=False, repr=False, compare=False)

    def assistant_turns(self) -> list[int]:
        """Indices of the turns that may be supervised."""
        return [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "assistant" and index >= self.first_supervised
        ]

    def prompt_length(self) -> int:
        """How many messages come before the last assistant turn (all, when there is none)."""
        turns = self.assistant_turns()
        return turns[-1] if turns else len(self.messages)

    def prompt_digest(self) -> bytes:
        """Content hash of what the model is asked: everything before the last answer. Decides the validation split."""
        if self._prompt_digest is None:
            content: Any = self.text if self.text is not None else self.messages[: self.prompt_length()]
            self._prompt_digest = digest_of([content, self.tools])
        return self._prompt_digest

    def digest(self) -> tuple[bytes, bytes]:
        """Content hashes of the prompt and of what follows it: together, of the whole row."""
        return self.prompt_digest(), digest_of(self.messages[self.prompt_length() :])


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str).encode


def digest_of(content: Any) -> bytes:
    """16 bytes that depend on the content alone."""
    return hashlib.blake2b(_canonical(content).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True)
class Prompt:
    """A validation prompt for sample generations and exact match."""

    messages: list[Message]  # up to the last assistant turn
    reference: str  # that turn's text
    skill: Optional[str] = None
    tools: Optional[list[Any]] = None
