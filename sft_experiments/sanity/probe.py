"""Measurements on fixed rows: what the sanity check looks at before and after its few steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.formats import Prompt
from sft_experiments.sanity.verdicts import Answer
from sft_experiments.training.generate import ready_to_generate, render_prompt


@dataclass(frozen=True)
class Probe:
    """One look at the model."""

    row_losses: list[float]  # mean nats per supervised token of each row
    end_probability: Optional[float]  # None when no end-of-turn token is supervised
    answers: list[Answer]


def look(
    model: Any,
    rows: Sequence[dict[str, list[int]]],
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    end_ids: set[int],
    max_new_tokens: int,
) -> Probe:
    """Losses and end-of-turn probability on ``rows``, greedy answers to ``prompts``. The model is left as it was."""
    losses: list[float] = []
    ends: list[float] = []
    with ready_to_generate(model):
        for row in rows:
            log_probs, labels = label_log_probs(model, row)
            if len(labels):
                losses.append(float(-log_probs.mean()))
            ends += [
                float(value.exp()) for value, label in zip(log_probs, labels.tolist(), strict=True) if label in end_ids
            ]
        stops = sorted({*end_ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])})
        answers = [_answer(model, tokenizer, prompt, stops, max_new_tokens) for prompt in prompts]
    return Probe(losses, sum(ends) / len(ends) if ends else None, answers)


def label_log_probs(model: Any, row: dict[str, list[int]]) -> tuple[Tensor, Tensor]:
    """Log-probability of each supervised token of one row, and the tokens; packed documents do not see each other."""
    device = model.device
    ids = torch.tensor([row["input_ids"]], device=device)
    labels = torch.tensor(row["labels"], device=device)
    places = (labels[1:] != -100).nonzero().flatten()  # the positions that predict a supervised token
    lengths = row.get("seq_lengths") or [ids.shape[1]]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    if not len(places):
        return torch.empty(0), labels[:0]
    output = model(input_ids=ids, position_ids=positions, logits_to_keep=places, use_cache=False)
    targets = labels[1:][places]
    return -F.cross_entropy(output.logits[0].float(), targets, reduction="none"), targets


def _answer(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, stops: list[int], limit: int) -> Answer:
    text = render_prompt(tokenizer, prompt)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops or None,
    )
    new = output[0, ids.shape[1] :].tolist()
    ended = bool(new) and new[-1] in stops
    said = str(tokenizer.decode(new, skip_special_tokens=True))
    return Answer(text, said, new[:-1] if ended else new, ended)
