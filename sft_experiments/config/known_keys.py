"""Mappings whose keys are ours although the schema cannot name them: an unknown key is answered with the nearest."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Optional

from sft_experiments.data.formats import known_fields
from sft_experiments.data.gate import RULES
from sft_experiments.data.sources import DEMO_DEFAULTS
from sft_experiments.errors import nearest
from sft_experiments.monitor.health import OUTSIDE
from sft_experiments.monitor.health import RULES as HEALTH_RULES
from sft_experiments.runs.identity import keys
from sft_experiments.schema import Config, HealthRuleConfig

# SFTConfig fields that no key sets as they are: what to set instead, or why they cannot be set.
_WITHOUT_KEY = {
    "gradient_accumulation_steps": "train.effective_batch_size (the accumulation is derived)",
    "auto_find_batch_size": "train.effective_batch_size (it would change the effective batch)",
    "save_steps": "train.eval_steps (checkpoints are saved at evaluations)",
    "save_strategy": "train.eval_steps (checkpoints are saved at evaluations)",
    "fsdp_config": "compute.fsdp (layer by layer, whole weights in the checkpoint)",
    "dataset_kwargs": "the dataset group (data are prepared before the trainer sees them)",
    "hub_token": "the environment variable HF_TOKEN (a token here would be written to the run folder)",
    "logging_nan_inf_filter": "nothing: it would hide a diverged run",
    "push_to_hub": "nothing: a finished run is exported by hand",
    "resume_from_checkpoint": "nothing: runs resume by themselves",
}
# SFTConfig field -> our key, or what else to do.
OWNED = {upstream: name for name, known in keys().items() for upstream in known.upstream} | _WITHOUT_KEY

# What may stand in each mapping; registers may have grown when it is asked.
KNOWN_KEYS: dict[str, Callable[[], Iterable[str]]] = {
    "dataset.columns": known_fields,
    "dataset.rules": lambda: RULES,
    "dataset.demo": lambda: DEMO_DEFAULTS,
    "monitor.rules": lambda: (*HEALTH_RULES, *OUTSIDE),
}


IN_A_HEALTH_RULE = tuple(field.name for field in fields(HealthRuleConfig))


def known_hint(key: str) -> Optional[str]:
    """The nearest key and all known ones for an unknown key of these mappings; None for any other key."""
    for mapping, known_now in KNOWN_KEYS.items():
        if key.startswith(f"{mapping}."):
            known = tuple(known_now())
            name, _, inner = key.removeprefix(f"{mapping}.").partition(".")
            if name in known and inner:
                name, known = inner, IN_A_HEALTH_RULE
            if name in known:  # of a register that has grown: the files of conf/ do not list it
                return f"; to add it to {mapping}, write +{key}=..."
            return f"{nearest(name, list(known))}; known: {', '.join(known)}"
    return None


# Names that upstream renamed or dropped, and those of other parts of a script; today's SFTConfig fields are in OWNED.
OLD = {
    "max_seq_length": "dataset.max_length",
    "max_seq_len": "dataset.max_length",
    "model_max_length": "dataset.max_length",
    "dataset_text_field": "dataset=text (and dataset.columns={text: <column>})",
    "dataset_num_proc": "not needed: data are tokenised in batches and cached",
    "remove_unused_columns": "not needed: data are prepared before the trainer sees them",
    "formatting_func": "dataset.format (docs/architecture.md says how to add your own)",
    "response_template": "dataset.train_on=assistant, which is the default",
    "instruction_template": "dataset.train_on=assistant, which is the default",
    "train_file": "dataset.train_files=[...]",
    "train_data": "dataset.train_files=[...]",
    "validation_file": "dataset.validation_files=[...]",
    "val_file": "dataset.validation_files=[...]",
    "dataset_name": "dataset=hub dataset.hub_id",
    "model_name": "model.name (with model=hub for any Hub id or folder)",
    "model_id": "model.name (with model=hub for any Hub id or folder)",
    "model_name_or_path": "model.name (with model=hub for any Hub id or folder)",
    "tokenizer": "model.tokenizer",
    "processing_class": "model.tokenizer",
    "chat_template": "model.chat_template",
    "chat_template_path": "model.chat_template",
    "torch_dtype": "train.precision (auto, fp32, bf16 or pure_bf16)",
    "dtype": "train.precision (auto, fp32, bf16 or pure_bf16)",
    "tf32": "train.extra.tf32 (written +train.extra.tf32=true)",
    "device_map": "compute.device",
    "no_cuda": "compute=cpu",
    "attn_implementation": "model.attn_implementation (auto takes the best that is there)",
    "use_flash_attention_2": "model.attn_implementation=flash_attention_2",
    "trust_remote_code": "model.trust_remote_code",
    "load_in_4bit": "peft=qlora",
    "quantization_config": "peft=qlora",
    "use_peft": "peft=lora",
    "lora_r": "peft.r (with peft=lora)",
    "lora_alpha": "peft.lora_alpha (with peft=lora)",
    "lora_dropout": "peft.lora_dropout (with peft=lora)",
    "lora_target_modules": "peft.target_modules (with peft=lora)",
    "target_modules": "peft.target_modules (with peft=lora)",
    "per_device_batch_size": "train.per_device_train_batch_size",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "batch_size": "train.effective_batch_size",
    "global_batch_size": "train.effective_batch_size",
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "warmup": "scheduler.warmup_ratio",
    "lr_scheduler": "scheduler",
    "optimizer": "train.optim",
    "evaluation_strategy": "train.eval_steps (a number of steps, or a share of the training)",
    "do_eval": "train.eval_steps (a number of steps, or a share of the training)",
    "early_stopping": "train.early_stopping_patience",
    "logging_dir": "not needed: TensorBoard files lie in the run folder (tensorboard --logdir outputs/<name>)",
    "overwrite_output_dir": "rerun=true",
    "output_dir": "output_dir",
    "wandb_project": "logger.wandb.project",
    "project_name": "logger.wandb.project",
    "use_wandb": "logger=wandb",
    "max_new_tokens": "generation.max_new_tokens",
    "neftune_noise_alpha": "train.extra.neftune_noise_alpha (written +train.extra.neftune_noise_alpha=5)",
    "use_liger": "train.extra.use_liger_kernel (written +train.extra.use_liger_kernel=true)",
    "label_names": "not needed: labels are made by the data preparation",
    "hub_token": "not needed: set HF_TOKEN in the environment, so that it is never written to a file",
    "ddp_find_unused_parameters": "not needed: every parameter that is trained is used",
}


def todays_name(key: str) -> Optional[str]:
    """What to set instead of a name that scripts use; None for a name that nobody uses."""
    name = key.lstrip("+~").rpartition(".")[2]
    if name in OLD:
        return OLD[name]
    answer = OWNED.get(name)
    return answer if answer != key else None


def schema_keys(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key that the schema knows, for "did you mean"."""
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        yield key
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from schema_keys(field.type, f"{key}.")


def free_mappings(schema: type = Config, prefix: str = "") -> set[str]:
    """The dotted keys that hold a mapping with keys of the user's own, like train.extra."""
    found = set()
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type):
            found |= free_mappings(field.type, f"{prefix}{field.name}.")
        elif str(field.type).startswith("dict[") and f"{prefix}{field.name}" not in KNOWN_KEYS:
            found.add(f"{prefix}{field.name}")
    return found
