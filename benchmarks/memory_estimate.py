"""Estimated against measured peak memory of a training step, with the real trainer on random models.

    python -m benchmarks.memory_estimate                 # the CPU, docs/memory.md
    python -m benchmarks.memory_estimate --device cuda   # on a GPU: torch.cuda.max_memory_allocated
    python -m benchmarks.memory_estimate --ranks         # over two processes: whole copies and sharded

On the CPU the allocations of one step are read from torch's profiler: the bytes that the allocator handed out and took
back, on top of what was live before the step (weights, optimizer state). That is what max_memory_allocated reports for
a GPU; the resident set of a process also holds libraries and what malloc keeps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig

from benchmarks.shard_on_cpu import shard_on_cpu
from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.models.shape import Shape
from sft_experiments.plan.machine import loads_bf16
from sft_experiments.plan.memory import Workload, estimate_memory
from sft_experiments.schema import PeftMethod
from sft_experiments.training.attention import register_packed_attention
from sft_experiments.training.model import nf4
from sft_experiments.training.trainer import ExperimentTrainer

MIB = 2**20
METHODS = {"full": PeftMethod.none, "lora": PeftMethod.lora, "qlora": PeftMethod.qlora}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    shape: Shape
    workload: Workload


BASE = Shape(hidden=256, layers=6, heads=4, key_value_heads=2, head_size=64, width=688, vocabulary=4096, tied=True)
WORK = Workload(precision="fp32", per_device_batch=4, length=256, accumulation=1, supervised_share=0.5, device="cpu")


def cases(device: str) -> list[Case]:
    """Shapes and settings that each move another term of the estimate."""
    base, work = BASE, replace(WORK, device=device)
    wide = replace(base, hidden=512, heads=8, key_value_heads=8, width=1376, layers=4)
    large_vocabulary = replace(base, vocabulary=32_000, layers=4)
    return [
        Case("base, fp32", base, work),
        Case("batch 16", base, replace(work, per_device_batch=16)),
        Case("length 1024", base, replace(work, length=1024)),
        Case("accumulation 4", base, replace(work, accumulation=4)),
        Case("bf16 autocast", base, replace(work, precision="bf16")),
        Case("bf16 autocast, batch 16", base, replace(work, precision="bf16", per_device_batch=16)),
        Case("pure bf16", base, replace(work, precision="pure_bf16", per_device_batch=16)),
        Case("checkpointing", base, replace(work, checkpointing=True, per_device_batch=16)),
        Case("checkpointing, bf16", base, replace(work, checkpointing=True, per_device_batch=16, precision="bf16")),
        Case("12 layers", replace(base, layers=12), replace(work, per_device_batch=8)),
        Case("wide, no grouped keys", wide, work),
        Case("wide, batch 1", wide, replace(work, per_device_batch=1)),
        Case("vocabulary 32k, untied", replace(large_vocabulary, tied=False), work),
        Case("vocabulary 32k, all supervised", large_vocabulary, replace(work, supervised_share=1.0)),
        Case("packed", base, replace(work, length=1024, packed=True)),
        Case("LoRA", wide, replace(work, method="lora", lora_r=16, per_device_batch=8)),
        Case("LoRA, bf16", wide, replace(work, method="lora", lora_r=16, per_device_batch=8, precision="bf16")),
        Case("QLoRA, bf16", wide, replace(work, method="qlora", lora_r=16, per_device_batch=8, precision="bf16")),
        *held_out(work),
    ]


def over_two_ranks() -> list[Case]:
    """Whole copies on each of two processes (DDP), and weights, gradients and optimizer state sharded (FSDP).

    A sharded model takes TRL's loss head, whose memory is not estimated on the CPU: a small vocabulary, or few tokens,
    keep it out.
    """
    wide = replace(BASE, hidden=512, heads=8, key_value_heads=8, width=1376)
    small = replace(wide, vocabulary=512)
    large_vocabulary = replace(BASE, vocabulary=16_000, tied=False)
    ddp = replace(WORK, devices=2, per_device_batch=2)
    fsdp = replace(ddp, sharded=True)
    lora = {"method": "lora", "lora_r": 16}
    return [
        Case("DDP, fp32", BASE, ddp),
        Case("DDP, wide, batch 1", wide, replace(ddp, per_device_batch=1)),
        Case("DDP, bf16, accumulation 2", large_vocabulary, replace(ddp, precision="bf16", accumulation=2)),
        Case("DDP, LoRA", wide, replace(ddp, **lora)),
        Case("FSDP, fp32", small, fsdp),
        Case("FSDP, few tokens, accumulation 2", wide, replace(fsdp, per_device_batch=1, length=64, accumulation=2)),
        Case("FSDP, few tokens, 16k untied", large_vocabulary, replace(fsdp, per_device_batch=1, length=64)),
        Case("FSDP, bf16", small, replace(fsdp, precision="bf16")),
        Case("FSDP, bf16, accumulation 2", small, replace(fsdp, precision="bf16", per_device_batch=1, accumulation=2)),
        Case("FSDP, LoRA", small, replace(fsdp, **lora)),
    ]


def held_out(work: Workload) -> list[Case]:
    """Mixed settings on another shape, measured after the formulae were fixed."""
    other = Shape(
        hidden=384, layers=5, heads=6, key_value_heads=2, head_size=64, width=1024, vocabulary=10_000, tied=False
    )
    odd = replace(work, per_device_batch=3, length=300, supervised_share=0.25)
    return [
        Case("held out: bf16, accumulation 2", other, replace(odd, precision="bf16", accumulation=2)),
        Case("held out: checkpointing, accumulation 2", other, replace(odd, checkpointing=True, accumulation=2)),
        Case("held out: LoRA r=8, checkpointing", other, replace(odd, method="lora", lora_r=8, checkpointing=True)),
        Case("held out: packed bf16", other, replace(odd, length=512, precision="bf16", packed=True)),
        Case("held out: pure bf16, SGD", other, replace(odd, precision="pure_bf16", optim="sgd")),
    ]


def run(case: Case) -> dict[str, Any]:
    """Train three optimizer steps, measure the last one."""
    estimate = estimate_memory(case.shape, case.workload)
    measured = measure(case)
    total = estimate.total
    return {
        "case": case.name,
        "estimated_mib": round(total / MIB, 1),
        "measured_mib": round(measured / MIB, 1),
        "error": round(total / measured - 1, 4),
        "parts_mib": {
            name: round(size / MIB, 1) for name, size in asdict(estimate).items() if isinstance(size, (int, float))
        },
    }


def measure(case: Case) -> int:
    """Peak bytes of one optimizer step."""
    register_packed_attention()
    torch.manual_seed(0)
    trainer = build_trainer(case)
    peak = Peak(trainer, case.workload.device)
    trainer.add_callback(peak)
    trainer.train()
    return peak.bytes


def build_model(case: Case) -> Any:
    shape, work = case.shape, case.workload
    config = AutoConfig.for_model(
        "llama",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
    )
    attention = "sft_packed" if work.packed else "sdpa"
    dtype = torch.bfloat16 if loads_bf16(work.precision, METHODS[work.method]) else torch.float32
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    if work.method == "qlora":
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation=attention, dtype=dtype, quantization_config=nf4()
            )
    model.config.use_cache = False
    return model


def build_trainer(case: Case) -> ExperimentTrainer:
    work = case.workload
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=work.device == "cpu",
        bf16=work.precision == "bf16",
        per_device_train_batch_size=work.per_device_batch,
        gradient_accumulation_steps=work.accumulation,
        activation_checkpointing=work.checkpointing,
        max_steps=3,
        optim=work.optim,
        learning_rate=1e-4,
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=work.packed,
        padding_free=work.packed,
        max_length=work.length if work.packed else None,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        fsdp=work.sharded or None,
    )
    return ExperimentTrainer(
        model=build_model(case),
        args=arguments,
        train_dataset=rows(case),
        processing_class=tokenizer(),
        peft_config=adapters(work),
    )


def adapters(work: Workload) -> Any:
    if work.method == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=work.lora_r, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def tokenizer() -> PreTrainedTokenizerFast:
    return build_demo_tokenizer()


def rows(case: Case) -> Dataset:
    """Rows of full length; the labels cover their last part. Packed rows hold documents of 128 tokens."""
    work, generator = case.workload, torch.Generator().manual_seed(0)
    count = 3 * work.per_device_batch * work.accumulation * work.devices
    ids = torch.randint(10, 300, (count, work.length), generator=generator).tolist()
    masked = round(work.length * (1 - work.supervised_share))
    table = {"input_ids": ids, "labels": [[-100] * masked + row[masked:] for row in ids]}
    if work.packed:
        table["seq_lengths"] = [[128] * (work.length // 128)] * count
    return Dataset.from_dict(table)


class Peak(TrainerCallback):
    """Measures the last of three optimizer steps; by then the optimizer state exists."""

    def __init__(self, trainer: ExperimentTrainer, device: str) -> None:
        self.trainer, self.device, self.bytes = trainer, device, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 2:
            return
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return
        self.before = live_bytes(self.trainer)
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profiler.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 3:
            return
        if self.device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()
            return
        self.profiler.__exit__(None, None, None)
        self.bytes = self.before + highest_sum(self.profiler)


def highest_sum(profiler: Any) -> int:
    """The highest running sum of allocations minus releases."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


def live_bytes(trainer: ExperimentTrainer) -> int:
    """Weights, buffers, optimizer state and DDP's buckets; each storage counted once, of sharded ones its own part."""
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    tensors += [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    tensors += [
        value for state in trainer.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    tensors = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    if isinstance(trainer.model_wrapped, DistributedDataParallel):
        tensors += [bucket.buffer() for bucket in trainer.model_wrapped.reducer._get_zeros_like_grad_buckets()]
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--ranks", action="store_true", help="the cases over two CPU processes")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.ranks and "RANK" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [sys.executable, *launcher, "-m", "benchmarks.memory_estimate", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode)
    torch.set_num_threads(1)
    if options.ranks:
        shard_on_cpu()
    chosen = over_two_ranks() if options.ranks else cases(options.device)
    results = [run(case) for case in chosen if not options.only or options.only in case.name]
    if os.environ.get("RANK", "0") != "0":
        return
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        return
    print("| case | estimated MiB | measured MiB | error |\n|---|---:|---:|---:|")
    for row in results:
        print(f"| {row['case']} | {row['estimated_mib']} | {row['measured_mib']} | {row['error']:+.1%} |")


if __name__ == "__main__":
    main()
