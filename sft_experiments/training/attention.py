"""Which attention a run uses and why, and our own for packed rows without flash-attn.

On stock ``sdpa`` a packed row of T tokens needs a dense T x T mask. In ``sft_packed`` the mask function hands down one
flag per token ("continues the document of the token before it") and the attention function runs causal attention
document by document: with SDPA, or on CUDA with ``torch.nn.attention.varlen.varlen_attn`` in one call.
A row that is not packed, a padded batch and generation take the path of ``sdpa``, unchanged. There is no way to leak:
the flags come from the same position ids as the dense mask, and without them the dense mask or plain ``sdpa`` is used.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from sft_experiments.errors import ConfigError, MissingDependencyError, ModelError
from sft_experiments.runs.plan_file import Choice
from sft_experiments.training.repeated_rows import ROW_STARTS

PACKED = "sft_packed"
States = tuple[Tensor, Tensor, Tensor]  # query, key, value
VARLEN_HEAD_SIZES = range(8, 257, 8)  # of the flash kernel behind varlen_attn
AMPERE = (8, 0)  # the oldest compute capability with flash attention


def register_packed_attention() -> None:
    """Make ``attn_implementation="sft_packed"`` known to transformers. Repeated calls change nothing."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, packed_mask)


# ---- mask


def packed_mask(  # noqa: PLR0913 transformers calls it
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask of ``sdpa``, or for packed rows the flags [batch, 1, 1, T]: True where a token continues its document.

    The flags stand in for the mask only if it is causal within documents and no window cuts a document.
    """
    square = q_length == kv_length > 1 and isinstance(q_offset, int) and q_offset == kv_offset == 0
    if square and attention_mask is None and not use_vmap and not allow_is_causal_skip:
        batch = torch.arange(batch_size, device=device)[:, None]
        token = torch.arange(q_length - 1, device=device)[None]
        backward = mask_function(batch, 0, token + 1, token)  # may a token see the one before it?
        forward = mask_function(batch, 0, token, token + 1)  # and the one after it?
        continues = F.pad(backward.expand(batch_size, -1), (1, 0))
        uncut = local_size is None or max(_lengths(continues)) <= local_size
        if uncut and not backward.all() and not forward.any():
            return continues[:, None, None]
    mask: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )
    return mask


def _lengths(continues: Tensor) -> list[int]:
    """Document lengths of all rows, one row behind the other; ``continues`` [batch, T]. Reads the device."""
    flat = continues.flatten()
    starts = (~flat).nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([flat.numel()])])
    return (ends - starts).tolist()


# ---- attention


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of query [batch, heads, T, size], key and value [batch, key heads, T, size] -> [batch, T, heads, size].

    Raises ValueError for scores that SDPA cannot compute (soft caps, sinks, position biases on packed rows).
    """
    if kwargs.get("s_aux") is not None:
        raise ValueError(f"attn_implementation={PACKED} has no attention sinks; use eager")
    starts = kwargs.get("cu_seq_lens_q")
    flagged = attention_mask is not None and attention_mask.shape[-2] == 1 < query.shape[2]
    if not flagged and not (attention_mask is None and starts is not None and len(starts) > 2):
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return output
    if kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None:
        raise ValueError(f"attn_implementation={PACKED} has neither softcap nor position_bias; use eager")
    longest = kwargs.get("max_length_q")
    if starts is None or longest is None:
        assert attention_mask is not None
        lengths = _lengths(attention_mask[:, 0, 0])
        starts = torch.tensor([0, *lengths], device=query.device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        longest = max(lengths)
    row = _one_row(query), _one_row(key), _one_row(value)
    run = varlen_kernel() if query.is_cuda and not dropout and _fits_varlen(query) else None
    if run is None:
        packed = attention_by_document(row, starts.diff().tolist(), dropout, scaling)
    else:
        packed = attention_by_kernel(run, row, starts, longest, scaling)
    return packed.reshape(query.shape[0], query.shape[2], *packed.shape[1:]), None


def _one_row(states: Tensor) -> Tensor:
    """[batch, heads, T, size] -> [heads, batch * T, size]; a view for one row."""
    return states.transpose(0, 1).flatten(1, 2)


def attention_by_document(row: States, lengths: list[int], dropout: float, scaling: float | None) -> Tensor:
    """Causal SDPA for each document of a row; [heads, T, size] -> [T, heads, size]."""
    grouped = row[0].shape[0] != row[1].shape[0]
    outputs = []
    for query, key, value in zip(*(torch.split(states, lengths, 1) for states in row), strict=True):
        output = F.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            is_causal=True,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=grouped,
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


# ---- the CUDA kernel


@cache
def varlen_kernel() -> Callable[..., Tensor] | None:
    """torch.nn.attention.varlen.varlen_attn, in torch since 2.10, or None."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn  # slow: flash kernels; and absent before torch 2.10

    return cast(Callable[..., Tensor], varlen_attn)


def _fits_varlen(query: Tensor) -> bool:
    half = _autocast_type(query) in (torch.float16, torch.bfloat16)
    return half and query.shape[-1] in VARLEN_HEAD_SIZES and torch.cuda.get_device_capability() >= AMPERE


def _autocast_type(states: Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def attention_by_kernel(
    run: Callable[..., Tensor], row: States, starts: Tensor, longest: int, scaling: float | None
) -> Tensor:
    """One call of varlen_attn for all documents; [heads, T, size] -> [T, heads, size].

    Its signature changes between torch versions: causal attention is ``is_causal=True`` or ``window_size=(-1, 0)``,
    and grouped heads must be repeated where ``enable_gqa`` is missing.
    """
    query, key, value = row
    accepted = inspect.signature(run).parameters
    options: dict[str, Any] = {"scale": scaling} if "scale" in accepted else {}
    if "scale" not in accepted and scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)  # its own scale is size ** -0.5
    options |= {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
    groups = query.shape[0] // key.shape[0]
    if groups > 1 and "enable_gqa" in accepted:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (repeat_kv(states[None], groups)[0] for states in (key, value))
    dtype = _autocast_type(query)
    states = (states.transpose(0, 1).to(dtype).contiguous() for states in (query, key, value))
    return run(*states, starts, starts, longest, longest, **options)


register_packed_attention()


FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_HOPPER = 9  # the major version that flash-attn 3 is for


def choose_attention(
    requested: str, packing: bool, device: str, precision: str, model_config: PretrainedConfig
) -> Choice:
    """Resolve ``auto``; anything else is the user's choice. ``auto`` with packing always keeps documents apart.

    ``precision`` is the plan's (fp32, bf16, pure_bf16): flash kernels compute in half precision only.

    ``sft_packed`` is also the choice for unpacked rows: put behind each other without padding, they train 1.5 times as
    fast as a padded batch (0.6M parameters, fp32; benchmarks/training_step.py). Models with other layers get ``sdpa``.
    Raises ConfigError when packing cannot be safe for this model, or a kernel that is asked for cannot run it.
    """
    half = precision != "fp32"
    if requested != "auto":
        _check_installed(requested)
        if requested in FLASH_PACKAGES and not half:
            raise ConfigError(f"model.attn_implementation={requested} computes in bf16 only, and this run is in fp32")
        return Choice(requested, f"set by model.attn_implementation={requested}")
    config = model_config.get_text_config()
    mixes = _packing_obstacle(config)
    if packing and mixes:
        raise ConfigError(f"dataset.packing=bfd would mix documents: {mixes}; set dataset.packing=none")
    if obstacle := _sdpa_obstacle(config):
        return Choice("eager", obstacle)
    if mixes:
        return Choice("sdpa", f"padded batches: {mixes}")
    if device == "cuda" and half and (flash := _flash_attention()):
        return Choice(flash, "flash-attn is installed and the GPU supports it")
    if device == "cuda" and (obstacle := _varlen_obstacle(config) if half else "fp32: flash kernels need bf16"):
        return Choice(PACKED, f"no padding, no dense mask: SDPA document by document ({obstacle})")
    kernel = "torch's varlen_attn" if device == "cuda" else "SDPA document by document"
    return Choice(PACKED, f"no padding, no dense mask: {kernel}")


def _check_installed(requested: str) -> None:
    package = FLASH_PACKAGES.get(requested)
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
    """Run two packed sequences that differ in document 1 only. ``collate`` is the trainer's own collator.

    The model is to be in the state in which it trains: where it computes and in what number format decides the kernel.
    """
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
            f"{type(model).__name__} with attention {attention!r}: a document sees the one before it in a pack, and "
            f"in a batch without padding (logits move by {probe.max_change:.3g} of {probe.largest_logit:.3g}); set "
            "dataset.packing=none and model.attn_implementation=sdpa"
        )
    return probe


def ignores_padding(model: PreTrainedModel) -> bool:
    """Whether real tokens are the same with and without the mask of a right-padded batch: asked of the model.

    Where attention is causal no real token ever looks at padding; recurrent and bidirectional layers, and positions
    that are counted from the mask, may differ. A model that cannot be asked keeps its mask.
    """
    vocabulary, half = int(model.get_input_embeddings().weight.shape[0]), PADDED_TOKENS // 2
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (2, PADDED_TOKENS), generator=generator).to(model.device)
    mask = torch.ones_like(ids)
    mask[1, half:] = 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            masked, plain = (
                model(input_ids=ids, use_cache=False, **given).logits[mask.bool()].float()
                for given in ({"attention_mask": mask}, {})
            )
    except Exception:  # noqa: BLE001 any model of any library: without the shortcut nothing is lost but time
        return False
    finally:
        model.train(was_training)
    return bool((masked - plain).abs().max() <= TOLERANCE * masked.abs().max())


PADDED_TOKENS = 24  # of the batch that asks, of which half are padding in one of two rows
