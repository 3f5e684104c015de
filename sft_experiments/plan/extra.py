"""train.extra reaches every SFTConfig field that we do not own. Its names are read without importing trl."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sft_experiments.errors import MissingDependencyError, nearest

# SFTConfig field -> our key, or the reason why it cannot be set.
OWNED = {
    "output_dir": "output_dir",
    "learning_rate": "train.learning_rate",
    "per_device_train_batch_size": "train.per_device_train_batch_size",
    "per_device_eval_batch_size": "train.per_device_eval_batch_size",
    "gradient_accumulation_steps": "train.effective_batch_size (the accumulation is derived)",
    "num_train_epochs": "train.num_train_epochs",
    "max_steps": "train.max_steps",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "optim": "train.optim",
    "adam_beta1": "train.adam_beta1",
    "adam_beta2": "train.adam_beta2",
    "adam_epsilon": "train.adam_epsilon",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "activation_checkpointing": "train.activation_checkpointing",
    "gradient_checkpointing": "train.activation_checkpointing",
    "logging_steps": "train.logging_steps",
    "logging_strategy": "train.logging_steps",
    "logging_first_step": "train.logging_steps",
    "logging_nan_inf_filter": "nothing: it would hide a diverged run",
    "eval_steps": "train.eval_steps",
    "eval_strategy": "train.eval_steps",
    "eval_on_start": "train.eval_on_start",
    "save_steps": "train.eval_steps (checkpoints are saved at evaluations)",
    "save_strategy": "train.eval_steps (checkpoints are saved at evaluations)",
    "save_total_limit": "train.save_total_limit",
    "load_best_model_at_end": "train.load_best_model_at_end",
    "metric_for_best_model": "objective.metric",
    "greater_is_better": "objective.direction",
    "seed": "train.seed",
    "data_seed": "train.data_seed",
    "lr_scheduler_type": "scheduler.name",
    "lr_scheduler_kwargs": "scheduler.kwargs",
    "warmup_steps": "scheduler.warmup_steps",
    "warmup_ratio": "scheduler.warmup_ratio",
    "report_to": "logger.trackers",
    "run_name": "name",
    "max_length": "dataset.max_length",
    "packing": "dataset.packing",
    "packing_strategy": "dataset.packing",
    "padding_free": "dataset.packing",
    "assistant_only_loss": "dataset.train_on",
    "completion_only_loss": "dataset.train_on",
    "dataset_kwargs": "the dataset group (data are prepared before the trainer sees them)",
    "use_cpu": "compute.device",
    "fsdp": "compute.fsdp",
    "fsdp_config": "compute.fsdp (layer by layer, whole weights in the checkpoint)",
    "dataloader_num_workers": "compute.dataloader_num_workers",
    "hub_token": "the environment variable HF_TOKEN (a token here would be written to the run folder)",
    "push_to_hub": "nothing: a finished run is exported by hand",
    "auto_find_batch_size": "train.effective_batch_size (it would change the effective batch)",
    "resume_from_checkpoint": "nothing: runs resume by themselves",
}


# Schedules that react to the loss: their rates cannot be planned, previewed or compared between cells.
FOLLOWS_LOSS = {"reduce_lr_on_plateau", "greedy"}


def check_upstream_names(optim: str, scheduler: str) -> Iterator[str]:
    """One line for an optimizer or scheduler that the installed transformers does not have."""
    schedules = [name for name in upstream_choices("trainer_utils.py", "SchedulerType") if name not in FOLLOWS_LOSS]
    named = {
        "train.optim": (optim, upstream_choices("training_args.py", "OptimizerNames")),
        "scheduler.name": (scheduler, schedules),
    }
    for key, (value, allowed) in named.items():
        if value not in allowed:
            yield f"{key}={value}: no such name{nearest(value, list(allowed))}; allowed: {', '.join(allowed)}"


def check_extra(extra: dict[str, Any]) -> Iterator[str]:
    """One line for each key of train.extra that is ours, or that the installed SFTConfig lacks."""
    if not extra:
        return
    known = sft_config_fields()
    for key in extra:
        if key in OWNED:
            yield f"train.extra.{key}: set {OWNED[key]} instead"
        elif key not in known:
            yield f"train.extra.{key}: the installed SFTConfig has no such field{nearest(key, sorted(known))}"


@lru_cache
def sft_config_fields() -> frozenset[str]:
    """Field names of the installed SFTConfig and its bases, read from their source in milliseconds."""
    return frozenset(
        [
            *_annotated(_source("trl", "trainer/sft_config.py"), "SFTConfig"),
            *_annotated(_source("trl", "trainer/base_config.py"), "_BaseConfig"),
            *_annotated(_source("transformers", "training_args.py"), "TrainingArguments"),
        ]
    )


@lru_cache
def upstream_choices(file: str, enum: str) -> tuple[str, ...]:
    """The values of a string enum of the installed transformers, e.g. the names of its optimizers."""
    return tuple(
        str(statement.value.value)
        for statement in _class_body(_source("transformers", file), enum)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
    )


def _class_body(file: Path, name: str) -> list[ast.stmt]:
    """The statements of a class. Parsed up to the next class or function only: a whole module may take 20 ms."""
    text = file.read_text(encoding="utf-8")
    found = re.search(rf"^class {name}\b.*?(?=^class |^def |^@|\Z)", text, re.MULTILINE | re.DOTALL)
    parsed = ast.parse(found.group()).body[0] if found else None
    return parsed.body if isinstance(parsed, ast.ClassDef) else []


def _source(package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"the package {package} is not installed: pip install sft-experiments")
    return Path(spec.origin).parent / file


def _annotated(file: Path, class_name: str) -> list[str]:
    return [
        statement.target.id
        for statement in _class_body(file, class_name)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]
