"""The loss of a causal language model over its supervised positions only.

A chat row has labels on its answers; the logits of all other positions are never needed. Here the output layer runs on
the labelled rows, a few hundred at a time, and turns each block of logits into its gradient in place: the
``[tokens, vocabulary]`` matrix is never held, and nothing is computed twice in the backward pass.
Equal to TRL's fused head to 1e-6 in loss and 1e-5 in gradients (tests/training/test_loss_head.py).

Both take the output layer of the last hidden states for the whole way to the logits. Models that do more, or less, are
known by asking: a random batch goes through the head and through the model's own forward, which is taken where they
differ.
"""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PretrainedConfig, PreTrainedModel

from sft_experiments.errors import first_line
from sft_experiments.runs.plan_file import Choice

LABELLED_ROWS = "labelled_rows"
TRL_FUSED = "trl_fused"
OWN_FORWARD = "own_forward"
# Rows of logits held at a time. 256 costs within 10% of all rows at once on the CPU, in fp32 and bf16, for vocabularies
# of 8k and 32k (benchmarks/loss_and_attention.py); it bounds the logits at 156 MiB for a vocabulary of 152k.
ROWS_PER_BLOCK = 256
# What a config may do to the logits after the output layer, and the value that means "nothing". All of it is known to
# TRL's head. A probe would not always see it: a soft cap does nothing to the small logits of random weights.
_LOGIT_CHANGES: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1, 1.0),
    "output_multiplier": (None, 1, 1.0),
    "lm_head_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
}


class LossSums(NamedTuple):  # a tuple: DDP and autocast wrappers look inside it
    """Sums over the supervised positions of one batch, all 0-dimensional and on the device."""

    nats: Tensor  # negative log-likelihood, fp32, differentiable
    num_supervised: Tensor  # positions with a label
    num_correct: Tensor  # of these, where the label has the largest logit
    aux_loss: Tensor | None = None  # load balancing of a mixture of experts; only TRL's head returns it


def choose_loss_head(model: PreTrainedModel, device: str, sharded: bool = False) -> Choice:
    """The fastest loss head that is exact for this model. ``sharded``: ranks hold parts of the weights (FSDP, ZeRO)."""
    config = model.config.get_text_config()
    obstacle = _logits_obstacle(config) or _layer_obstacle(model.get_output_embeddings())
    if obstacle:
        return Choice(TRL_FUSED, f"TRL's fused head: {obstacle}")
    if sharded:
        return Choice(TRL_FUSED, "TRL's fused head: the output layer is sharded over ranks")
    if device != "cpu":
        return Choice(TRL_FUSED, f"TRL's fused head: it has a kernel for {device}; ours is measured on the CPU only")
    return Choice(LABELLED_ROWS, "logits only for supervised tokens: the fastest measured on the CPU")


def _logits_obstacle(config: PretrainedConfig) -> str | None:
    for key, neutral in _LOGIT_CHANGES.items():
        if getattr(config, key, None) not in neutral:
            return f"the model sets {key}={getattr(config, key)}"
    if getattr(config, "output_router_logits", False):
        return "the model adds a load-balancing loss of its experts"
    return None


def _layer_obstacle(layer: nn.Module | None) -> str | None:
    if type(layer) is not nn.Linear:  # an adapter, a quantized layer, or a model without a head
        return f"the output layer is a {type(layer).__name__}, not a plain Linear"
    return None


def add_loss_head(model: PreTrainedModel) -> None:
    """Let ``model(..., labels=..., loss_sums=True)`` return ``LossSums``; without ``loss_sums`` nothing changes.

    Patched on the instance, below any PEFT or DDP wrapper, so that a call through the wrapper runs all hooks.
    """
    plain_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def forward(self: Any, *args: Any, loss_sums: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not loss_sums:
            return plain_forward(*args, **kwargs) if labels is None else plain_forward(*args, labels=labels, **kwargs)
        assert labels is not None
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        rows = targets != -100
        head = self.get_output_embeddings()
        nats, num_correct = rows_loss(hidden[rows], head.weight, head.bias, targets[rows])
        return LossSums(nats=nats, num_supervised=rows.sum(), num_correct=num_correct)

    model.forward = types.MethodType(forward, model)


def loss_sums(model: nn.Module, inputs: dict[str, Any], head: str) -> LossSums:
    """The sums of one batch with labels, by the head of that name."""
    if head == LABELLED_ROWS:
        return LossSums(*model(**inputs, loss_sums=True))  # DDP hands back a plain tuple
    if head == TRL_FUSED:
        return sums_from_fused(model(**inputs, fused_lm_head=True))
    return sums_from_logits(model(**{key: value for key, value in inputs.items() if key != "labels"}), inputs["labels"])


def sums_from_logits(outputs: Any, labels: Tensor) -> LossSums:
    """The same sums from a model's own logits [batch, T, vocabulary], for labels [batch, T]."""
    targets = labels[:, 1:]
    rows = targets != -100
    log_probs = outputs.logits[:, :-1][rows].float().log_softmax(-1)
    own = log_probs.gather(1, targets[rows][:, None])
    num_correct = (own == log_probs.detach().amax(-1, keepdim=True)).sum()
    return LossSums(-own.sum(), rows.sum(), num_correct, getattr(outputs, "aux_loss", None))


# Largest differences from the model's own forward, as shares of the loss and of the gradient. In fp32 they are sums in
# another order; in bf16 logits are rounded to 8 bits of mantissa.
EXACT, ROUNDED = (1e-5, 1e-3), (2e-2, 0.2)
PROBED = (2, 24)  # rows and tokens of the random batch
FEW_PARAMETERS = 8  # the smallest ones whose gradients are compared: they lie along the whole way


def proven(model: PreTrainedModel, choice: Choice) -> Choice:
    """The choice where it agrees with the model's own forward on a random batch, else the next one that does.

    The model is to be where it computes, with its adapters. Its mode and the random state stay as they are.
    """
    with _probing(model):
        inputs = _random_batch(model)
        try:
            own = _loss_and_gradient(model, inputs, OWN_FORWARD)
        except Exception as error:  # noqa: BLE001 any model of any library: what cannot be asked is said, not judged
            return replace(choice, reason=f"{choice.reason}; not proven, the model cannot be asked: {_told(error)}")
        others = [TRL_FUSED] if choice.value == LABELLED_ROWS else []
        faults: list[str] = []
        for head in (choice.value, *others):
            fault = _fault(model, inputs, head, own)
            if fault is None:
                return Choice(head, f"TRL's fused head: {faults[0]}" if faults else choice.reason)
            faults.append(f"{head} {fault}")
    return Choice(OWN_FORWARD, f"the model's own logits: {'; '.join(faults)}")


def _fault(model: PreTrainedModel, inputs: dict[str, Any], head: str, own: tuple[Tensor, Tensor]) -> str | None:
    """How a head differs from the model's own forward; None: it does not."""
    half = next(model.parameters()).dtype != torch.float32 or torch.is_autocast_enabled(model.device.type)
    of_loss, of_gradient = ROUNDED if half else EXACT
    try:
        loss, gradient = _loss_and_gradient(model, inputs, head)
    except Exception as error:  # noqa: BLE001 as above
        return f"fails on it ({_told(error)})"
    if not abs(loss - own[0]) <= of_loss * abs(own[0]):
        return f"has a loss of {loss:.4g} where the model's own is {own[0]:.4g}"
    if not (gradient - own[1]).norm() <= of_gradient * own[1].norm():
        return "has other gradients than the model's own"
    return None


def _loss_and_gradient(model: PreTrainedModel, inputs: dict[str, Any], head: str) -> tuple[Tensor, Tensor]:
    """Nats per token, and the gradient of some trainable parameters in one row (empty when none is reached)."""
    sums = loss_sums(model, dict(inputs), head)
    loss = sums.nats / sums.num_supervised
    trained = sorted((one for one in model.parameters() if one.requires_grad), key=lambda one: one.numel())
    few = trained[:FEW_PARAMETERS]
    found = torch.autograd.grad(loss, few, allow_unused=True) if few else ()
    rows = [one.flatten().float() for one in found if one is not None]
    return loss.detach(), torch.cat(rows) if rows else loss.detach()[None]


@contextmanager
def _probing(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout; kernels that compute in half precision only get what they take."""
    device, was_training = model.device.type, model.training
    flash = str(getattr(model.config, "_attn_implementation", "")).startswith("flash")
    model.eval()
    try:
        with torch.enable_grad(), torch.autocast(device, torch.bfloat16) if flash else nullcontext():
            yield
    finally:
        model.train(was_training)


def _random_batch(model: PreTrainedModel) -> dict[str, Any]:
    """Tokens with every third label left out; no random state but its own."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, vocabulary, PROBED, generator=torch.Generator().manual_seed(0)).to(model.device)
    labels = ids.clone()
    labels[:, ::3] = -100
    return {"input_ids": ids, "labels": labels, "use_cache": False}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def sums_from_fused(outputs: Any) -> LossSums:
    """The same sums from the output of TRL's fused head, which is zero where there is no label."""
    return LossSums(
        nats=-outputs.log_probs.sum(),
        num_supervised=outputs.label_mask.sum(),
        num_correct=outputs.is_top1.sum(),
        aux_loss=outputs.aux_loss,
    )


def rows_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over rows, in nats, and the number of rows whose target has the largest logit.

    hidden [rows, width], weight [vocabulary, width], bias [vocabulary] or None, targets [rows].
    Matrix products run in the autocast type if there is one; log-softmax and sums in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        grad = torch.is_grad_enabled()
        sums: tuple[Tensor, Tensor] = _RowsLoss.apply(hidden, weight, bias, targets, dtype, grad)  # type: ignore[no-untyped-call]  # torch's own
    return sums


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Add left @ right to the total in fp32; ``total`` is changed in place."""
    if total is None:
        return (left @ right).float()
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(left @ right)


class _RowsLoss(torch.autograd.Function):
    """Loss and gradients block by block in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, grad: bool
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = (grad and need for need in ctx.needs_input_grad[:3])
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        shift = None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(rows) if wants_hidden else None
        grad_weight = torch.zeros_like(matrix, dtype=torch.float32) if wants_weight and not len(targets) else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        nats = torch.zeros((), device=hidden.device, dtype=torch.float32)
        num_correct = torch.zeros((), device=hidden.device, dtype=torch.int64)
        for start in range(0, len(targets), ROWS_PER_BLOCK):
            block = slice(start, start + ROWS_PER_BLOCK)
            labels = targets[block, None]
            log_probs = F.linear(rows[block], matrix, shift).float().log_softmax(-1)
            own = log_probs.gather(1, labels)
            nats -= own.sum()
            num_correct += (own == log_probs.amax(-1, keepdim=True)).sum()
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            # d loss / d logits = probabilities - one-hot(label)
            logits_grad = log_probs.exp_().scatter_add_(1, labels, torch.full_like(own, -1.0))
            if grad_bias is not None:
                grad_bias += logits_grad.sum(0)
            logits_grad = logits_grad.to(dtype)
            if grad_hidden is not None:
                torch.mm(logits_grad, matrix, out=grad_hidden[block])
            if wants_weight:
                grad_weight = _add_product(grad_weight, logits_grad.t(), rows[block])
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(num_correct)
        return nats, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nats: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if grad is None else (grad * grad_nats).to(dtype) for grad, dtype in grads]
        return (*scaled, None, None, None)
