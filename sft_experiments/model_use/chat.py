"""Talk to a trained model in the terminal."""

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer

from sft_experiments.data.formats import Prompt
from sft_experiments.model_use.saved import Trained
from sft_experiments.training.generate import answer

HELP = "/reset starts over, /exit (or Ctrl-D) leaves."
Message = dict[str, Any]


def chat(
    trained: Trained,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    read: Callable[[str], str] = input,
) -> None:
    """Read a line, answer it, until the user leaves. The whole conversation is the prompt of each answer."""
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    print(f"{trained.record.name} {trained.record.label}: {HELP}")
    while True:
        try:
            text = read("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/exit":
            return
        if text == "/reset":
            messages = list(start)
            print("(a new conversation)")
        elif text:
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": reply(trained, messages, max_new_tokens, temperature)})


def reply(trained: Trained, messages: list[Message], max_new_tokens: int, temperature: float) -> str:
    """The model's next turn, printed as it is made. ``temperature`` 0 is greedy: the same answer every time."""
    streamer = TextStreamer(trained.tokenizer, skip_prompt=True, skip_special_tokens=True)
    prompt = Prompt(messages, reference="")
    ends = trained.end_of_turn_ids
    return answer(trained.model, trained.tokenizer, [prompt], max_new_tokens, ends, temperature, streamer)[0].text
