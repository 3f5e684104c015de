"""Identity is content: a trial's id is a hash of what decides its result, and of nothing else."""

import hashlib
import json
from pathlib import Path
from typing import Any, Optional

from sft_experiments.compose import to_plain
from sft_experiments.data.fingerprint import HashMemory, dataset_fingerprint, default_cache_dir
from sft_experiments.plan.size import model_config_file
from sft_experiments.schema import Config, ModelConfig, ModelSource

ID_LENGTH = 12

# Names, places, watching and bookkeeping do not change what is learned. The per-device batch does not either:
# the effective batch does (tests/training shows equal losses for every split of it).
NOT_IDENTITY = (
    "name",
    "output_dir",
    "rerun",
    "logger",
    "monitor",
    "compute",
    "sweep",
    "model.name",
    "model.tokenizer",
    "model.chat_template",
    "model.size_class",
    "model.recommended",
    "model.num_parameters",
    "dataset.name",
    "dataset.train_files",
    "dataset.validation_files",
    "dataset.test_files",
    "train.per_device_train_batch_size",
    "train.per_device_eval_batch_size",
    "train.precision",
)
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "config.json", "tokenizer*", "chat_template*")


def fingerprints(config: Config) -> dict[str, str]:
    """Content hashes of the data and the model that this run reads."""
    model, memory = config.model, HashMemory(default_cache_dir())
    return {
        **dataset_fingerprint(config.dataset, memory),
        "model": model_fingerprint(model, memory),
        "tokenizer": path_fingerprint(model.tokenizer, memory),
        "chat_template": path_fingerprint(model.chat_template, memory),
    }


def path_fingerprint(name: Optional[str], memory: HashMemory) -> str:
    """Content hash of a folder or file, or the name itself when nothing of that name exists here."""
    path = Path(name or "").expanduser()
    if name is None or not path.exists():
        return str(name)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return digest({str(file.relative_to(path)): memory.sha256(file) for file in files})


def model_fingerprint(model: ModelConfig, memory: HashMemory) -> str:
    """A hash of a local folder's files, the commit of a cached Hub model, or the name of one that is not here yet."""
    if model.source is ModelSource.random:
        return "random"
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        files = sorted({file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern)})
        return digest({file.name: memory.sha256(file) for file in files})
    cached = model_config_file(model.name, model.revision)
    commit = cached.parent.name if cached is not None else model.revision or "main"
    return f"{model.name}@{commit}"


def deciding_values(config: Config) -> dict[str, Any]:
    """The resolved values that decide the result, nested as in the config."""
    values = without(to_plain(config), NOT_IDENTITY)
    for name in values["dataset"]["mixture"]:
        files = ("train_files", "validation_files", "test_files")
        values["dataset"]["mixture"][name] = without(values["dataset"]["mixture"][name], files)
    return values


def trial_id(config: Config, precision: str, content: dict[str, str]) -> str:
    """The id of a trial: deciding values, precision and number of devices as resolved, data and model content."""
    payload = {
        "values": deciding_values(config),
        "precision": precision,
        "num_devices": config.compute.num_devices,
        "content": content,
        **({"fsdp": True} if config.compute.fsdp else {}),  # its checkpoints are not those of whole copies
    }
    return digest(payload)[:ID_LENGTH]


def without(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of nested values that lacks the given dotted keys."""
    left = json.loads(json.dumps(values))
    for key in keys:
        *parents, last = key.split(".")
        node = left
        for parent in parents:
            node = node.get(parent, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(last, None)
    assert isinstance(left, dict)
    return left


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON form, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
