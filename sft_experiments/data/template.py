"""Conversations to text with the assistant's spans marked, whatever template the tokenizer brings.

Three ways, tried per row in this order:
1. ``markers``: the template has ``{% generation %}`` markers, and the renderer reports where they fell.
2. ``training twin``: TRL knows the same template with markers, and its text for this row is byte-equal to the stock's.
3. ``prefixes``: the conversation is rendered up to before and up to after each assistant turn; the rest is the turn.
None of them is believed: proof.py checks every span against the row's content.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from sft_experiments.data.formats import Conversation, Message, RowFault
from sft_experiments.errors import ConfigError, ModelError, nearest

Span = tuple[int, int]  # characters [start, end)
# What a template can raise on a row that it does not expect; jinja passes Python's own errors through.
_RENDER_ERRORS = (TemplateError, TypeError, KeyError, IndexError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a row and the spans of the assistant's turns that are to be supervised."""

    text: str
    spans: list[Span]
    method: str  # "markers", "training twin" or "prefixes"


class ChatRenderer:
    """Renders conversations with one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._special_tokens: dict[str, Any] = tokenizer.special_tokens_map
        self.template = default_template(tokenizer)
        self.has_markers = _has_markers(self.template)
        self.twin = None if self.has_markers else _find_training_twin(tokenizer)
        self._arguments_as_string = self._wants_string_arguments()
        self.header = self._generation_prompt()

    def render(self, conversation: Conversation, turns: list[int]) -> Rendered:
        """The row with the spans of ``turns``. Raises ``RowFault`` when the template refuses it or hides a span."""
        messages = self._prepare(conversation.messages)
        text, spans = self._call(self.template, messages, conversation.tools)
        if self.has_markers:
            return Rendered(text, self._select(conversation, turns, text, spans), "markers")
        if self.twin is not None:
            twin_text, spans = self._call(self.twin, messages, conversation.tools)
            if twin_text == text:
                return Rendered(text, self._select(conversation, turns, text, spans), "training twin")
        return Rendered(text, self._spans_by_prefixes(messages, conversation.tools, text, turns), "prefixes")

    def render_text(self, conversation: Conversation) -> str:
        """The text alone, for training on every token."""
        return self._call(self.template, self._prepare(conversation.messages), conversation.tools)[0]

    def _select(self, conversation: Conversation, turns: list[int], text: str, spans: list[Span]) -> list[Span]:
        """Of the spans of all assistant turns, those of ``turns`` (always the last ones)."""
        everything = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if turns == everything:
            return spans
        if len(spans) == len(everything):
            return spans[-len(turns) :]
        before, _ = self._call(self.template, self._prepare(conversation.messages[: turns[0]]), conversation.tools)
        return [span for span in spans if span[0] >= _common_prefix(before, text)]

    def _call(
        self, template: str, messages: list[Message], tools: Optional[list[Any]], add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        has_markers = self.has_markers or template is self.twin
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=has_markers,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except _RENDER_ERRORS as error:
            raise RowFault("template_error", f"{type(error).__name__}: {error}") from error
        return texts[0], spans[0] if has_markers else []

    def _spans_by_prefixes(
        self, messages: list[Message], tools: Optional[list[Any]], text: str, turns: list[int]
    ) -> list[Span]:
        if not self.header:
            raise RowFault("unproven_mask", "the template ignores add_generation_prompt, so no turn's start is known")
        spans = []
        for index in turns:
            after, _ = self._call(self.template, messages[: index + 1], tools)
            if index:
                before, _ = self._call(self.template, messages[:index], tools, add_generation_prompt=True)
            else:
                before = after[: after.find(self.header) + len(self.header)]
            spans.append(self._span_between(before, after, text, index))
        return spans

    def _span_between(self, before: str, after: str, text: str, index: int) -> Span:
        """The span of one assistant turn: from the end of the generation prompt to the end of the turn.

        Raises ``RowFault`` when the template prints the start or the turn differently once more turns follow.
        """
        what = f"turn {index + 1}: "
        if not after.startswith(before):
            raise RowFault("unproven_mask", what + "the generation prompt is not how the turn begins" + self._advice())
        if not text.startswith(after):
            what += "the template prints it differently once more turns follow; dataset.train_on=last_assistant works"
            raise RowFault("unproven_mask", what + self._advice())
        return len(before), len(before) + len(after[len(before) :].rstrip())

    def _advice(self) -> str:
        """What to do about a template without markers."""
        twin = training_name(self.twin)
        if twin is None:
            return "; or give a template with {% generation %} markers (model.chat_template=FILE.jinja)"
        return f"; or model.chat_template={twin}, the same family with markers, prints every turn as it was generated"

    def _generation_prompt(self) -> str:
        """What the template prints before the assistant speaks; empty when it does not say."""
        question: list[Message] = [{"role": "user", "content": "question"}]
        try:
            without, _ = self._call(self.template, question, None)
            with_prompt, _ = self._call(self.template, question, None, add_generation_prompt=True)
        except RowFault:
            return ""
        return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""

    def _prepare(self, messages: list[Message]) -> list[Message]:
        return [_with_string_arguments(message) for message in messages] if self._arguments_as_string else messages

    def _wants_string_arguments(self) -> bool:
        """Whether tool-call arguments must be JSON strings: true when only those come out as correct text."""
        return not self._prints_arguments({"probe_key": "probe value"}) and self._prints_arguments(
            '{"probe_key": "probe value"}'
        )

    def _prints_arguments(self, arguments: Any) -> bool:
        call = {"type": "function", "id": "call00001", "function": {"name": "probe", "arguments": arguments}}
        messages: list[Message] = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            text, _ = self._call(self.template, messages, None)
        except RowFault:
            return False
        return "probe_key" in text and "{'probe_key'" not in text and '\\"probe_key' not in text


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template. Raises ``ModelError`` when it has none."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):  # named variants
        template = template.get("default")
    if not template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template (a base model?); "
            "choose one with model.chat_template=plain (works with any tokenizer) or chatml, or name a .jinja file"
        )
    return str(template)


def _has_markers(template: str) -> bool:
    from trl.chat_template_utils import has_generation_markers  # slow: trl, seconds

    return bool(has_generation_markers(template))


def _find_training_twin(tokenizer: PreTrainedTokenizerBase) -> Optional[str]:
    """TRL's version of this very template with generation markers, or None."""
    from trl.chat_template_utils import get_training_chat_template  # slow: trl, seconds

    try:
        twin: Optional[str] = get_training_chat_template(tokenizer)
    except _RENDER_ERRORS:  # ValueError: no twin is known; the others: TRL's own probes do not fit the template
        return None
    return twin


def _with_string_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append(call | {"function": function | {"arguments": arguments}})
    return message | {"tool_calls": calls}


def _common_prefix(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


OWN = Path(__file__).parent / "templates"


def shipped_names() -> list[str]:
    """Ours first (chatml, plain), then TRL's family names; ``<family>_training`` has generation markers."""
    return [file.stem for folder in _folders() for file in sorted(folder.glob("*.jinja"))]


def shipped_template(name: str) -> str:
    """The text of a shipped template. Raises ``ConfigError`` naming the choices."""
    for folder in _folders():
        file = folder / f"{name}.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    names = shipped_names()
    raise ConfigError(
        f"model.chat_template={name} is neither a .jinja file nor a shipped template{nearest(name, names)}; "
        f"shipped: {', '.join(names)}"
    )


def training_name(template: str | None) -> str | None:
    """The name of a shipped template with this text, or None."""
    for folder in _folders():
        for file in folder.glob("*_training.jinja"):
            if template is not None and file.read_text(encoding="utf-8") == template:
                return file.stem
    return None


def _folders() -> list[Path]:
    spec = find_spec("trl")  # finds the package without importing it
    return [OWN] + ([Path(spec.origin).parent / "chat_templates"] if spec and spec.origin else [])


def read_template(name: str) -> str:
    """A chat template by shipped name or from a .jinja file."""

    file = Path(name).expanduser()
    if file.suffix in {".jinja", ".j2"}:
        if not file.is_file():
            raise ConfigError(f"model.chat_template={name}: no such file")
        return file.read_text(encoding="utf-8")
    return shipped_template(name)
