"""Rendered rows to token ids and labels, a batch at a time.

Labels are aligned with ``input_ids`` (the shift by one happens in the loss); -100 is not supervised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.conversation import Conversation, RowFault
from sft_experiments.data.template import ChatRenderer, Rendered, Span
from sft_experiments.errors import ModelError
from sft_experiments.schema import TrainOn

IGNORED = -100
Ids = npt.NDArray[np.int32]


@dataclass(slots=True)
class Encoded:
    """One document. ``input_ids`` and ``labels`` have the same length."""

    conversation: Conversation
    input_ids: Ids
    labels: Ids
    text: str
    spans: list[Span]  # supervised characters of text
    method: str  # how the spans were found
    is_cut: bool = False  # an answer lost its end token to max_length

    def num_supervised(self) -> int:
        """Tokens the loss sees; the first token of a document is never predicted."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


class Encoder:
    """Renders, tokenizes and masks conversations for one tokenizer and one ``dataset.train_on``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer without character offsets; masks need a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.train_on = train_on
        self._backend: Any = tokenizer.backend_tokenizer
        self._renderer: Optional[ChatRenderer] = None

    @property
    def renderer(self) -> ChatRenderer:
        """Made when the first conversation comes: plain text needs no chat template."""
        if self._renderer is None:
            self._renderer = ChatRenderer(self.tokenizer)
        return self._renderer

    def encode(self, conversations: Sequence[Conversation]) -> list[Union[Encoded, RowFault]]:
        """One result per conversation, in order; a row that cannot be rendered or masked is a ``RowFault``."""
        rendered = [self._render(conversation) for conversation in conversations]
        texts = [item.text for item in rendered if isinstance(item, Rendered)]
        encodings = iter(self._tokenize(texts, add_special_tokens=any(c.text is not None for c in conversations)))
        return [
            self._label(conversation, item, next(encodings)) if isinstance(item, Rendered) else item
            for conversation, item in zip(conversations, rendered, strict=True)
        ]

    def _render(self, conversation: Conversation) -> Union[Rendered, RowFault]:
        try:
            return self._render_checked(conversation)
        except RowFault as fault:
            return fault

    def _render_checked(self, conversation: Conversation) -> Rendered:
        rendered = self._rendered(conversation)
        try:
            rendered.text.encode()
        except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair; tokenizers raise TypeError on it
            raise RowFault("unreadable_row", f"holds {rendered.text[error.start]!r}, which is no character") from None
        return rendered

    def _rendered(self, conversation: Conversation) -> Rendered:
        if conversation.text is not None:
            eos = str(self.tokenizer.eos_token or "")
            text = conversation.text if conversation.text.endswith(eos) else conversation.text + eos
        elif self.train_on is TrainOn.all:
            text = self.renderer.render_text(conversation)
        else:
            return self.renderer.render(conversation, supervised_turns(conversation, self.train_on))
        return Rendered(text, [(0, len(text))], "all")

    def _tokenize(self, texts: list[str], add_special_tokens: bool) -> Any:
        """The Rust tokenizer at once over the batch; same ids as calling the tokenizer on each text."""
        self._backend.no_truncation()
        self._backend.no_padding()
        return self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)

    def _label(self, conversation: Conversation, rendered: Rendered, encoding: Any) -> Encoded:
        input_ids = np.array(encoding.ids, dtype=np.int32)
        if rendered.method == "all":
            labels = input_ids.copy()
        else:
            labels = np.full_like(input_ids, IGNORED)
            for start, end in rendered.spans:
                tokens = _tokens_of(encoding, start, end)
                labels[tokens] = input_ids[tokens]
        return Encoded(conversation, input_ids, labels, rendered.text, rendered.spans, rendered.method)


def supervised_turns(conversation: Conversation, train_on: TrainOn) -> list[int]:
    """Indices of the assistant turns that the loss sees."""
    turns = conversation.assistant_turns()
    return turns[-1:] if train_on is TrainOn.last_assistant else turns


def _tokens_of(encoding: Any, start: int, end: int) -> slice:
    """Tokens that hold any of the characters [start, end). Characters without a token (dropped spaces) are skipped."""
    first = next((t for at in range(start, end) if (t := encoding.char_to_token(at)) is not None), None)
    last = next((t for at in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(at)) is not None), None)
    return slice(0, 0) if first is None or last is None else slice(first, last + 1)
