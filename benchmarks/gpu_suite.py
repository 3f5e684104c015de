"""The GPU suite: full fine-tuning, LoRA, attention, loss head, syncs and a grid, against stock TRL, in one run.

``python -m benchmarks.gpu_suite`` (`make bench-gpu`) wants one GPU and takes less than --seconds, 520 by default: what
does not fit in is listed as skipped. Models have random weights, documents are generated, so nothing is downloaded.
``--toy`` runs all of it on the CPU with toy models in a minute; its numbers mean nothing.

Tokens are real ones, without padding. Gate of each size: the same loss as TRL with the same rows, and no document sees
another. Targets are those for one H200-class GPU.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import SFTTrainer

from benchmarks.gpu_contenders import Contender, Size, build_rows, build_trainer
from benchmarks.gpu_idle import idle_and_syncs
from benchmarks.harness import table, write_result
from benchmarks.loss_and_attention import attention_case, loss_head_case
from benchmarks.training_step import check_no_leak
from sft_experiments.training.attention import PACKED
from sft_experiments.training.trainer import ExperimentTrainer

SIZES = {
    "0.5B": Size((896, 24, 14, 2, 4864), 151936, 2048, 16, target=110_000),
    "1.2B": Size((2048, 16, 32, 8, 8192), 128256, 2048, 8, target=55_000),
    "8B LoRA": Size((4096, 32, 32, 8, 14336), 128256, 4096, 2, lora=True, tied=False, target=12_500),
}
TOYS = {
    "toy": Size((64, 2, 4, 2, 128), 512, 128, 2, target=0),
    "toy LoRA": Size((64, 2, 4, 2, 128), 512, 128, 2, lora=True, tied=False, target=0),
}
OURS, SAME = "ours", "TRL, packed, no checkpointing"
CONTENDERS = {
    OURS: Contender(ExperimentTrainer, PACKED),
    SAME: Contender(SFTTrainer),
    "TRL, unpacked, grouped by length": Contender(SFTTrainer, packed=False, grouped=True),
    "TRL, its defaults": Contender(SFTTrainer, checkpointing=True),
    "ours, compiled": Contender(ExperimentTrainer, PACKED, compiled=True),
}
SKIPPED = "skipped: no time left"
WARM_UP, MEASURED = 3, 10  # optimizer steps
RESERVE = 45.0  # seconds that a contender may take: none starts with less left
LOSS_TOLERANCE = 0.02  # nats: bf16, mean of five steps


@dataclass
class Budget:
    """Wall seconds left."""

    seconds: float

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.seconds

    def left(self) -> float:
        return self.end - time.monotonic()


class Window(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Wall seconds of the measured steps, with everything finished on the device at both ends."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            synchronize()
            self.start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize()
        self.seconds = time.perf_counter() - self.start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train(size: Size, how: Contender, device: str) -> dict[str, Any]:
    """Tokens per second of one contender, its loss, and the most memory it took."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        rows = build_rows(size, how, WARM_UP + MEASURED)
        trainer, counts = build_trainer(size, how, rows, WARM_UP + MEASURED, device, folder)
        window = Window()
        trainer.add_callback(window)
        trainer.train()
    tokens = sum(counts[WARM_UP : WARM_UP + MEASURED])
    losses = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    return {
        "tokens_per_second": tokens / window.seconds,
        "step_ms": 1e3 * window.seconds / MEASURED,
        "first_logged_loss": losses[0],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "loss_head": trainer.loss_head.value if isinstance(trainer, ExperimentTrainer) else None,
    }


def run_size(size: Size, names: list[str], device: str, budget: Budget) -> dict[str, Any]:
    """Every contender that the time allows. What went wrong with one is its result, and the others go on."""
    results: dict[str, Any] = {}
    for name in names:
        if budget.left() < RESERVE:
            results[name] = SKIPPED
            continue
        how = CONTENDERS[name]
        try:
            results[name] = train(size, how, device)
        except Exception as error:  # noqa: BLE001 whatever a contender dies of (memory, a compiler) is worth knowing
            results[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    done = {name: result for name, result in results.items() if isinstance(result, dict)}
    rates = {name: result["tokens_per_second"] for name, result in done.items()}
    if OURS in done and SAME in done:
        difference = abs(done[OURS]["first_logged_loss"] - done[SAME]["first_logged_loss"])
        assert difference < LOSS_TOLERANCE, f"losses differ by {difference}"
        results["loss_difference"] = difference
    ours = max((rate for name, rate in rates.items() if name.startswith("ours")), default=None)
    peer = max((rate for name, rate in rates.items() if name.startswith("TRL")), default=None)
    return {
        "contenders": results,
        "target": size.target,
        "best": ours,
        "times_best_trl": ours / peer if ours and peer else None,
        "size": asdict(size),
    }


def kernels(device: str, toy: bool) -> dict[str, Any]:
    """The loss head and the attention of packed rows alone; milliseconds of wall time, synchronised."""
    dtype = torch.bfloat16
    heads = {"toy": (64, 512)} if toy else {"0.5B": (896, 151936), "8B": (4096, 128256)}
    positions = 256 if toy else 8192
    cases = {
        f"loss head {name}": loss_head_case(width, vocabulary, dtype, 3, device, positions)
        for name, (width, vocabulary) in heads.items()
    }
    for tokens in (256,) if toy else (2048, 8192):
        cases[f"attention {tokens}"] = attention_case(tokens, dtype, 3, device)
    return cases


def gate(device: str) -> None:
    """No document of a packed row sees another, on this device."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
    )
    config._attn_implementation = PACKED
    check_no_leak(LlamaForCausalLM(config).to(device, torch.bfloat16).eval())


def grid(device: str, steps: int) -> dict[str, Any]:
    """A 3x3 grid on the tiny model: `sft sweep` against TRL under Hydra's basic launcher; wall seconds."""
    from benchmarks.grid import check_cells, hydra_trl, our_sweep
    from benchmarks.world import Job, build_world

    with tempfile.TemporaryDirectory() as folder:
        root, job = Path(folder), Job(steps, device=device)
        world = build_world(root / "world")
        contenders: dict[str, Callable[..., tuple[float, float]]] = {"ours": our_sweep, "TRL": hydra_trl}
        seconds = {name: work(world, job, root / name)[1] for name, work in contenders.items()}
        difference = check_cells(job, root / "ours", root / "TRL", LOSS_TOLERANCE)
    return {
        "wall_seconds": seconds,
        "times": seconds["TRL"] / seconds["ours"],
        "largest_loss_difference": difference,
    }


def main() -> None:  # noqa: C901 its parts, in their order
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="toy models on the CPU: does the suite run?")
    parser.add_argument("--seconds", type=float, default=520.0, help="wall time for all of it")
    parser.add_argument("--parts", nargs="+", choices=("kernels", "sizes", "idle", "grid"), help="default: all")
    parser.add_argument("--results", type=Path, help="another folder for the result")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; `--toy` runs the suite on the CPU")
    device, sizes = ("cpu", TOYS) if options.toy else ("cuda", SIZES)
    parts = options.parts or ["kernels", "sizes", "idle", "grid"]
    budget, name = Budget(options.seconds), "gpu_suite_toy" if options.toy else "gpu_suite"
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else "toy run, not a result"}

    def keep(part: str, value: Any) -> None:
        result[part] = value
        write_result(name, result, options.results)  # after each part, so that nothing is lost
        print(f"{part}: {budget.left():.0f} s left", flush=True)

    gate(device)
    if "kernels" in parts:
        keep("kernels", kernels(device, options.toy))
    if "sizes" in parts:
        for label, size in sizes.items():
            keep(label, run_size(size, list(CONTENDERS)[: 4 if options.toy else None], device, budget))
    if "idle" in parts:
        size, enough = next(iter(sizes.values())), budget.left() > RESERVE
        waits = {who: idle_and_syncs(size, CONTENDERS[who], device) for who in (OURS, SAME) if enough}
        keep("idle", waits or SKIPPED)
    if "grid" in parts:
        keep("grid", grid(device, 2 if options.toy else 20) if budget.left() > 2 * RESERVE else SKIPPED)
    labels = list(sizes) if "sizes" in parts else []
    show(result, labels)
    if any(not isinstance(result[label]["contenders"][OURS], dict) for label in labels):
        raise SystemExit("not every model was trained by ours")


def show(result: dict[str, Any], labels: list[str]) -> None:
    rows = []
    for label in labels:
        for name, one in result[label]["contenders"].items():
            if isinstance(one, dict):
                rows.append((label, name, round(one["tokens_per_second"]), one["step_ms"], one["peak_gib"] or ""))
            elif isinstance(one, str):
                rows.append((label, name, one, "", ""))
    print(table(("model", "contender", "tokens per second", "step, ms", "peak GiB"), rows))
    for label in labels:
        print(f"{label}: x{result[label]['times_best_trl'] or 0:.2f} the best of TRL; target {result[label]['target']}")
    print({part: result[part] for part in ("idle", "grid") if part in result})


if __name__ == "__main__":
    main()
