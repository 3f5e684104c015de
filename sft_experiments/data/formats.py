"""One row in our own shape, whatever format it came in; the register of formats.

A module of the user's own adds a format with ``add`` (``plugins=[my_module]``).
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Optional

from sft_experiments.errors import ConfigError, DataError, nearest
from sft_experiments.files import source_hash
from sft_experiments.schema import DataSource, SourceConfig

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
    supervised: Optional[str] = None  # what the loss sees of that turn: the text with what the template puts around it


@dataclass(frozen=True)
class Answer:
    """What a model generated for a prompt: its tokens without the prompt, and whether it came to an end."""

    prompt: str  # as the model saw it
    text: str  # special tokens left out
    ids: list[int]  # up to the end token, which is left out
    ended: bool


ROLES = ("system", "user", "assistant", "tool")
Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How the rows of a file become conversations: one entry of the register.

    ``read`` raises ``RowFault`` for a row that it cannot read. The fields are keys of ``dataset.columns``, by which a
    file's columns may have other names (``column_of``).
    """

    name: str  # dataset.format
    read: Callable[[Row, SourceConfig, Origin], Conversation]
    required: tuple[str, ...]  # fields that every file of this format has
    optional: tuple[str, ...] = ()
    version: str = ""  # of code that is not ours: with the files it says what the data are

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


TEXT = "text"  # one string; every token is supervised
FORMATS: dict[str, Format] = {}


def add(format: Format) -> None:
    """Put a format into the register; its version is the content of the file that ``read`` stands in.

    Raises ``ConfigError`` when another format has its name.
    """
    if not format.version:
        format = replace(format, version=source_hash(format.read))
    if FORMATS.setdefault(format.name, format) != format:
        raise ConfigError(f"the data format {format.name} is in the register already")


def format_of(source: SourceConfig, key: str = "dataset") -> Format:
    """The format of a source. Raises ``ConfigError`` for one that is not in the register."""
    if source.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError(f"{key}.format={source.format}: choose one of {known}{nearest(source.format, [*FORMATS])}")
    return FORMATS[source.format]


def known_fields() -> tuple[str, ...]:
    """The keys of ``dataset.columns``: every field that some format reads."""
    return tuple(dict.fromkeys(field for format in FORMATS.values() for field in format.fields))


def read_conversation(row: Row, source: SourceConfig, origin: Origin) -> Conversation:
    """The row in our shape, with ``dataset.system_prompt`` put first where the row has no system turn."""
    conversation = FORMATS[source.format].read(row, source, origin)
    if source.system_prompt and conversation.messages and conversation.messages[0]["role"] != "system":
        conversation.messages.insert(0, {"role": "system", "content": source.system_prompt})
        conversation.first_supervised += 1
    return conversation


def column_of(row: Row, source: SourceConfig, field: str) -> Any:
    """The value of the column that ``dataset.columns`` gives for the field; None when the row has none."""
    return row.get(source.columns.get(field, field))


def _string(row: dict[str, Any], source: SourceConfig, field: str) -> str:
    column = source.columns.get(field, field)
    value = row.get(column)
    if isinstance(value, str):
        return value
    if column in row:
        raise RowFault("missing_column", f"column {column!r} is {_kind(value)}, not a string")
    raise RowFault("missing_column", f"no column {column!r}; columns: {', '.join(map(str, row)) or 'none'}")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _messages(row: dict[str, Any], source: SourceConfig, origin: Origin) -> Conversation:
    turns = [_message(turn, source) for turn in _turn_list(row, source, "messages")]
    return Conversation(turns, origin, tools=_tools(row, source), skill=_skill(row, source))


def _turn_list(row: dict[str, Any], source: SourceConfig, field: str) -> list[Any]:
    column = source.columns.get(field, field)
    value = row.get(column)
    if isinstance(value, list) and value:
        return value
    if column not in row:
        raise RowFault("no_messages", f"no column {column!r}; columns: {', '.join(map(str, row)) or 'none'}")
    said = "an empty list" if value == [] else _kind(value)
    raise RowFault("no_messages", f"column {column!r} is {said}, not a list of turns")


def _message(turn: Any, source: SourceConfig) -> Message:
    """A turn with a known role and string content; keys whose value is null are left out (templates print them)."""
    if not isinstance(turn, dict):
        raise RowFault("no_messages", f"a turn is {_kind(turn)} {str(turn)[:30]!r}, not an object")
    message = {key: value for key, value in turn.items() if value is not None}
    message["role"] = _role(message.get("role"), source)
    message["content"] = _text_of(message.get("content"))
    calls = message.pop("tool_calls", None) or []  # an empty list makes some templates print an empty call
    if not isinstance(calls, list):
        raise RowFault("missing_column", f"tool_calls is {_kind(calls)}, not a list")
    if calls:
        message["tool_calls"] = [_tool_call(call) for call in calls]
    return message


def _role(role: Any, source: SourceConfig) -> str:
    if role is None:
        raise RowFault("unknown_role", "a turn has no role")
    mapped = source.role_names.get(str(role), role)
    if mapped not in ROLES:
        raise RowFault("unknown_role", f"role {role!r}; map it with +dataset.role_names.{role}=<{'|'.join(ROLES)}>")
    return str(mapped)


def _text_of(content: Any) -> str:
    """Content as one string: null is empty, text parts are joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(map(_is_text_part, content)):
        return "".join(part.get("text") or "" for part in content)
    raise RowFault("missing_column", f"content must be a string or text parts, not {str(content)[:40]!r}")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text") or "", str)


def _tool_call(call: Any) -> dict[str, Any]:
    """A call as ``{"type": "function", "function": {"name", "arguments": object}}``; JSON strings are parsed.

    What a template wants, object or string, is decided where it is rendered.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault("missing_column", f"a tool call has no function name: {str(call)[:60]!r}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise RowFault("missing_column", f"arguments of tool call {function['name']!r}: {error}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowFault("missing_column", f"arguments of tool call {function['name']!r} are {_kind(arguments)}")
    kept = {"id": call["id"]} if call.get("id") is not None else {}
    return kept | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(row: dict[str, Any], source: SourceConfig) -> Optional[list[Any]]:
    tools = column_of(row, source, "tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise RowFault("missing_column", f"column 'tools' is not JSON: {error}") from None
    return tools or None


def _skill(row: dict[str, Any], source: SourceConfig) -> Optional[str]:
    skill = column_of(row, source, "skill")
    return None if skill is None else str(skill)


def _sharegpt(row: dict[str, Any], source: SourceConfig, origin: Origin) -> Conversation:
    turns = []
    for turn in _turn_list(row, source, "conversations"):
        if not isinstance(turn, dict):
            raise RowFault("no_messages", f"a turn is {_kind(turn)}, not an object")
        role, content = source.columns.get("from", "from"), source.columns.get("value", "value")
        turns.append(_message({"role": turn.get(role), "content": turn.get(content)}, source))
    return Conversation(turns, origin, tools=_tools(row, source), skill=_skill(row, source))


def _prompt_completion(row: dict[str, Any], source: SourceConfig, origin: Origin) -> Conversation:
    """Two strings become a user and an assistant turn; two lists of turns are joined, only the second supervised."""
    prompt, completion = column_of(row, source, "prompt"), column_of(row, source, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        context = [_message(turn, source) for turn in prompt]
        answer = [_message(turn, source) for turn in completion]
    else:
        context = [{"role": "user", "content": _string(row, source, "prompt")}]
        answer = [{"role": "assistant", "content": _string(row, source, "completion")}]
    first = len(context)
    return Conversation(
        context + answer, origin, tools=_tools(row, source), skill=_skill(row, source), first_supervised=first
    )


def _alpaca(row: dict[str, Any], source: SourceConfig, origin: Origin) -> Conversation:
    """Instruction and input are one user turn, an empty line between them."""
    has_input = column_of(row, source, "input") is not None
    parts = [_string(row, source, "instruction"), _string(row, source, "input") if has_input else ""]
    user = {"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}
    assistant = {"role": "assistant", "content": _string(row, source, "output")}
    return Conversation([user, assistant], origin, skill=_skill(row, source))


def _text(row: dict[str, Any], source: SourceConfig, origin: Origin) -> Conversation:
    return Conversation([], origin, text=_string(row, source, "text"), skill=_skill(row, source))


FORMATS |= {
    format.name: format
    for format in (
        Format("messages", _messages, ("messages",), ("tools", "skill")),
        Format("prompt_completion", _prompt_completion, ("prompt", "completion"), ("tools", "skill")),
        Format("alpaca", _alpaca, ("instruction", "output"), ("input", "skill")),
        Format("sharegpt", _sharegpt, ("conversations",), ("from", "value", "tools", "skill")),
        Format(TEXT, _text, ("text",), ("skill",)),
    )
}


MAX_NAMED = 12  # columns that are listed


def refuse_missing_columns(source: SourceConfig, split: str, columns: Iterable[str], key: str = "dataset") -> None:
    """Raise ``DataError`` when none of ``columns``, all that were seen, is one that ``source`` must have."""
    seen = [str(column) for column in columns]
    missing = [field for field in format_of(source).required if source.columns.get(field, field) not in seen]
    if not missing:
        return
    wanted = ", ".join(repr(source.columns.get(field, field)) for field in missing)
    named = " ".join(f"{key}.columns.{field}=<column>" for field in missing)
    fitting = [format.name for format in FORMATS.values() if {*format.required} <= {*seen}]
    option = "dataset=" if source.source is DataSource.files and key == "dataset" else f"{key}.format="
    other = "".join(f", or {option}{format}, which fits them" for format in fitting)
    more = ", ..." if len(seen) > MAX_NAMED else ""
    raise DataError(
        f"{split}: no row has a column {wanted}, which the format {source.format} needs; columns: "
        f"{', '.join(seen[:MAX_NAMED]) or 'none'}{more}; set {named}{other}"
    )
