"""Measurements on fixed rows: what the sanity check looks at before and after its few steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.formats import Answer, Prompt
from sft_experiments.training.generate import answer, ready_to_generate


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
    answers = answer(model, tokenizer, prompts, max_new_tokens, end_ids)
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
