"""The two hot pieces of a training step alone, forward and backward: the loss head and the attention of packed rows.

``python -m benchmarks.loss_and_attention`` prints milliseconds of CPU time and how far results are from the reference,
and writes benchmarks/results/loss_and_attention.json. The constants in training/loss_head.py come from here.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from benchmarks.harness import measure, table, write_result
from sft_experiments.training import loss_head
from sft_experiments.training.attention import attention_by_document, attention_by_kernel, varlen_kernel

HEADS = {"0.6M": (64, 8192), "27M": (512, 8192), "0.5B": (896, 32768)}  # label: width, vocabulary
POSITIONS = 768  # of a batch; the last two thirds of them carry a label
ROWS_PER_BLOCK = (64, 256, 1024)
TRL_TILE = 32768  # vocabulary entries per tile, TRL's own setting


def loss_head_case(
    width: int, vocabulary: int, dtype: torch.dtype, repeats: int, device: str = "cpu", positions: int = POSITIONS
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=generator).to(device).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device).requires_grad_()
    targets = torch.randint(0, vocabulary, (positions,), generator=generator).to(device)
    labelled = torch.arange(positions, device=device) >= positions // 3
    rows, labels = labelled.nonzero().flatten(), targets[labelled]

    def plain() -> Tensor:
        return F.cross_entropy(F.linear(hidden[rows], weight).float(), labels, reduction="sum")

    def fused() -> Tensor:
        outputs = ("log_probs", "entropy", "is_top1")  # as SFTTrainer asks for
        log_probs = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TRL_TILE, None, 1.0, outputs)[0]
        return -log_probs.masked_fill(~labelled, 0).sum()

    def blocks(size: int) -> Tensor:
        loss_head.ROWS_PER_BLOCK = size
        return loss_head.rows_loss(hidden[rows], weight, None, labels)[0]

    losses: dict[str, Callable[[], Tensor]] = {"cross entropy, all labelled rows": plain, "TRL's fused head": fused}
    losses |= {f"ours, blocks of {size}": (lambda size=size: blocks(size)) for size in ROWS_PER_BLOCK}
    return compare(losses, (hidden, weight), dtype, repeats)


def attention_case(tokens: int, dtype: torch.dtype, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Eight query heads, four key heads of size 64; documents of log-normal length, mean about 180."""
    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(
            int((torch.randn((), generator=generator) * 0.7 + 4.95).exp().clamp(8, max(8, left)).clamp(max=left))
        )
    states = (torch.randn(heads, tokens, 64, generator=generator) for heads in (8, 4, 4))
    query, key, value = row = tuple(one.to(device, dtype).requires_grad_() for one in states)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    mask = (document[:, None] == document) & torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    starts = torch.tensor([0, *lengths], device=device, dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def dense() -> Tensor:
        repeated = (states.repeat_interleave(2, 0)[None] for states in (key, value))
        return F.scaled_dot_product_attention(query[None], *repeated, attn_mask=mask)[0].transpose(0, 1).square().sum()

    def by_document() -> Tensor:
        return attention_by_document((query, key, value), lengths, 0.0, None).square().sum()

    def by_kernel() -> Tensor:
        return attention_by_kernel(kernel, (query, key, value), starts, max(lengths), None).square().sum()

    contenders = {"sdpa with a dense mask": dense, "ours, document by document": by_document}
    if device == "cuda" and (kernel := varlen_kernel()):
        contenders["ours, varlen_attn"] = by_kernel
    result = compare(contenders, row, None, repeats)
    return {**result, "documents": len(lengths)}


def compare(
    losses: dict[str, Callable[[], Tensor]], leaves: tuple[Tensor, ...], autocast: torch.dtype | None, repeats: int
) -> dict[str, Any]:
    """Milliseconds of forward and backward, and distances from the first contender."""
    device = leaves[0].device.type
    values: dict[str, tuple[float, list[Tensor]]] = {}

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            with torch.autocast(device, autocast, enabled=autocast not in (None, torch.float32)):
                loss = losses[name]()
            loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            values[name] = loss.item(), [leaf.grad.float() for leaf in leaves if leaf.grad is not None]

        return run

    measured = measure({name: step(name) for name in losses}, repeats)
    loss, gradients = values[next(iter(losses))]
    return {
        name: {
            "cpu_ms": measured[name].cpu_median * 1e3,
            "wall_ms": measured[name].wall_median * 1e3,
            "loss_error": abs(values[name][0] / loss - 1),
            "gradient_error": max(
                ((ours - theirs).abs().max() / theirs.abs().max()).item()
                for ours, theirs in zip(values[name][1], gradients, strict=True)
            ),
        }
        for name in losses
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for size, (width, vocabulary) in HEADS.items():
            results[f"loss head {size} {name}"] = loss_head_case(width, vocabulary, dtype, repeats)
        for tokens in (512, 2048):
            results[f"attention {tokens} {name}"] = attention_case(tokens, dtype, repeats)
    write_result("loss_and_attention", {"cases": results})
    rows = [
        (case, name, run["cpu_ms"], f"{run['loss_error']:.0e}", f"{run['gradient_error']:.0e}")
        for case, runs in results.items()
        for name, run in runs.items()
        if isinstance(run, dict)
    ]
    print(table(("case", "contender", "CPU ms", "loss error", "gradient error"), rows))


if __name__ == "__main__":
    main()
