"""Which attention implementation a run uses, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from sft_experiments.errors import ConfigError, MissingDependencyError, ModelError
from sft_experiments.runs.plan_file import Choice
from sft_experiments.training.packed_attention import AMPERE, PACKED, VARLEN_HEAD_SIZES, varlen_kernel
from sft_experiments.training.repeated_rows import ROW_STARTS

_HOPPER = 9  # the major version that flash-attn 3 is for


def choose_attention(requested: str, packing: bool, device: str, model_config: PretrainedConfig) -> Choice:
    """Resolve ``auto``; anything else is the user's choice. ``auto`` with packing always keeps documents apart.

    ``sft_packed`` is also the choice for unpacked rows: put behind each other without padding, they train 1.5 times as
    fast as a padded batch (0.6M parameters, fp32; benchmarks/training_step.py). Models with other layers get ``sdpa``.
    Raises ConfigError when packing cannot be safe for this model.
    """
    if requested != "auto":
        _check_installed(requested)
        return Choice(requested, f"set by model.attn_implementation={requested}")
    config = model_config.get_text_config()
    mixes = _packing_obstacle(config)
    if packing and mixes:
        raise ConfigError(f"dataset.packing=bfd would mix documents: {mixes}; set dataset.packing=none")
    if obstacle := _sdpa_obstacle(config):
        return Choice("eager", obstacle)
    if mixes:
        return Choice("sdpa", f"padded batches: {mixes}")
    if device == "cuda" and (flash := _flash_attention()):
        return Choice(flash, "flash-attn is installed and the GPU supports it")
    if device == "cuda" and (obstacle := _varlen_obstacle(config)):
        return Choice(PACKED, f"no padding, no dense mask: SDPA document by document ({obstacle})")
    kernel = "torch's varlen_attn" if device == "cuda" else "SDPA document by document"
    return Choice(PACKED, f"no padding, no dense mask: {kernel}")


def _check_installed(requested: str) -> None:
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(requested)
    if package is not None and find_spec(package) is None:
        raise MissingDependencyError(
            f"model.attn_implementation={requested} needs flash-attn: pip install 'sft-experiments[flash]'"
        )


def _model_class(config: PretrainedConfig) -> Any:
    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def _packing_obstacle(config: PretrainedConfig) -> str | None:
    if _model_class(config) is None:
        return f"the attention of model type {config.model_type!r} is not known to transformers"
    others = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if others:
        return f"{config.model_type} has layers of type {', '.join(sorted(others))}"
    if getattr(config, "num_attention_heads", None) is None:
        return f"{config.model_type} has no attention to keep them apart"
    return None


def _sdpa_obstacle(config: PretrainedConfig) -> str | None:
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"SDPA cannot cap attention scores (attn_logit_softcapping={config.attn_logit_softcapping})"
    if not getattr(_model_class(config), "_supports_sdpa", True):
        return f"{config.model_type} does not support SDPA"
    return None


def _flash_attention() -> str | None:
    """The newest installed flash-attn that this GPU can run."""
    capability = torch.cuda.get_device_capability()
    if capability[0] == _HOPPER and find_spec("flash_attn_interface"):
        return "flash_attention_3"
    return "flash_attention_2" if capability >= AMPERE and find_spec("flash_attn") else None


def _varlen_obstacle(config: PretrainedConfig) -> str | None:
    if varlen_kernel() is None:
        return "this torch has no varlen_attn"
    if torch.cuda.get_device_capability() < AMPERE:
        return "varlen_attn needs an Ampere or newer GPU"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size not in VARLEN_HEAD_SIZES:
        return f"varlen_attn has no kernel for head size {size}"
    if getattr(config, "attention_dropout", 0.0):
        return f"varlen_attn has no dropout (attention_dropout={config.attention_dropout})"
    return None


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
