"""Does a packed document see the one before it? Asked of the very model and batches that will be trained.

Position ids alone isolate documents on some attentions and not on others, an extra attention mask undoes it, and a
family may bring layers that mix along the sequence. So the question is put by experiment: change document 1, and the
logits of document 2 must stay what they were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from sft_experiments.errors import ModelError
from sft_experiments.training.repeated_rows import ROW_STARTS

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]

# Largest change allowed, as a share of the largest logit. Measured on Llama with random weights (0.15M parameters, sdpa
# and eager, fp32 and bf16): exactly 0 when documents are apart, 0.6 and more when an all-ones mask lets them leak.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class PackingProbe:
    """How far the logits of document 2 moved when document 1 changed."""

    max_change: float
    largest_logit: float

    @property
    def leaks(self) -> bool:
        # A NaN compares false: it must count as a leak, not as a pass.
        return not self.max_change <= TOLERANCE * self.largest_logit


def probe_packing(model: PreTrainedModel, collate: Collate, document_length: int = 16) -> PackingProbe:
    """Run two packed sequences that differ in document 1 only. ``collate`` is the trainer's own collator."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)  # not the global one: the run's random state stays as it is
    first, other, second = torch.randint(0, vocabulary, (3, document_length), generator=generator).tolist()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            before, after = (_logits_of_second(model, collate, document, second) for document in (first, other))
    finally:
        model.train(was_training)
    return PackingProbe(float((before - after).abs().max()), float(before.abs().max()))


def _logits_of_second(model: PreTrainedModel, collate: Collate, first: list[int], second: list[int]) -> torch.Tensor:
    """Logits [len(second), vocabulary] of the second document of a pack, in fp32."""
    ids = first + second
    batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": [len(first), len(second)]}])
    inputs = {
        key: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key not in {"labels", ROW_STARTS}
    }
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits[0, len(first) :].float()


def check_packing(model: PreTrainedModel, collate: Collate) -> PackingProbe:
    """Raises ``ModelError`` when packed documents would see each other."""
    probe = probe_packing(model, collate)
    if probe.leaks:
        attention = model.config._attn_implementation
        raise ModelError(
            f"dataset.packing=bfd: with {type(model).__name__} and attention {attention!r} a packed document sees the "
            f"one before it (logits move by {probe.max_change:.3g} of {probe.largest_logit:.3g}); set "
            "dataset.packing=none or another model.attn_implementation"
        )
    return probe
