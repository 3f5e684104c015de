"""Talk to a trained model in the terminal."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TextStreamer

from sft_experiments.data.formats import Prompt
from sft_experiments.model_use.saved import Trained
from sft_experiments.training.generate import ready_to_generate, render_prompt

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
            messages.append({"role": "assistant", "content": answer(trained, messages, max_new_tokens, temperature)})


def answer(trained: Trained, messages: list[Message], max_new_tokens: int, temperature: float = 0.0) -> str:
    """The model's next turn, printed as it is made. ``temperature`` 0 is greedy: the same answer every time."""
    model, tokenizer = trained.model, trained.tokenizer
    text = render_prompt(tokenizer, Prompt(messages, reference=""))
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
    ends = sorted({*trained.end_of_turn_ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])})
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with ready_to_generate(model), torch.no_grad():
        output = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends or None,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            **sampling,
        )
    new = output[0, encoded["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))
