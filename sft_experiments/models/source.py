"""The model gate: what is wrong with a model is said before anything is spent, in one line, within seconds."""

import json
import re
import struct
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import ModelError
from sft_experiments.models.hub import hub_commit, hub_is_offline
from sft_experiments.schema import ModelConfig, ModelSource

_CAUSAL = re.compile(r"ForCausalLM|LMHeadModel|ForConditionalGeneration|ForImageTextToText")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_model_source(model: ModelConfig) -> Optional[str]:
    """Look at a folder or ask the Hub, without loading weights. Returns the commit of a Hub model, else None.

    Raises ``ModelError`` for a folder that is missing or holds no causal language model, damaged weight files, remote
    code without its flag, and a Hub model that is absent, gated, or neither cached nor reachable.
    """
    if model.source is ModelSource.random:
        return None
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        _check_folder(folder, model)
        return None
    if not _HUB_NAME.fullmatch(model.name):
        raise ModelError(f"model.name={model.name}: no such folder (looked in {Path.cwd()}), and not a Hub id")
    return _check_hub(model)


def _check_folder(folder: Path, model: ModelConfig) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"model.name={folder} holds a LoRA adapter, not a model; merge it first (sft export)")
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise ModelError(f"model.name={folder} is not a model: no config.json (it holds {found}){inner_model(folder)}")
    _check_config(folder / "config.json", model)
    _check_weight_files(folder)


def _check_config(file: Path, model: ModelConfig) -> None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    architectures = config.get("architectures") or []
    if architectures and not any(_CAUSAL.search(name) for name in architectures):
        raise ModelError(f"model.name={model.name} is {', '.join(architectures)}, not a causal language model")
    if "auto_map" in config and not model.trust_remote_code and not _is_known_to_transformers(config):
        raise ModelError(
            f"model.name={model.name} brings its own code ({', '.join(map(str, config['auto_map'].values()))}); "
            "read it, then set model.trust_remote_code=true"
        )


def _is_known_to_transformers(config: dict[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES


def _check_weight_files(folder: Path) -> None:
    """Weights must be there, every shard of them, and whole: an interrupted download is found by the file's size."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"model.name={folder}: {len(missing)} of {len(shards)} shards are missing: {missing[0]}")
    files = sorted(folder.glob("*.safetensors"))
    if not files and not list(folder.glob("pytorch_model*.bin")):
        raise ModelError(f"model.name={folder} has no weights: neither *.safetensors nor pytorch_model*.bin")
    for file in files:
        expected = _safetensors_size(file)
        if file.stat().st_size != expected:
            raise ModelError(f"{file} is damaged: {file.stat().st_size} bytes, its header says {expected}")


def _safetensors_size(file: Path) -> int:
    """Bytes that the header announces: 8 for its length, itself, and the tensors."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("it is no safetensors file, perhaps a Git LFS pointer")
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + int(length) + int(max(ends, default=0))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged: no readable safetensors header ({error})") from error


def _check_hub(model: ModelConfig) -> Optional[str]:
    commit = hub_commit("model", model.name, model.revision, ModelError)
    cached = model_config_file(model.name, model.revision)
    if cached is not None:
        _check_config(cached, model)
    if commit is not None:
        return commit
    if cached is None:
        why = "HF_HUB_OFFLINE is set" if hub_is_offline() else "the Hub did not answer within 2 seconds"
        raise ModelError(f"model.name={model.name}: no such folder, not in the local Hub cache, and {why}")
    return cached.parent.name  # the snapshot folder of the cache is named by its commit


HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def inner_model(folder: Path) -> str:
    """A hint for someone who names a run folder instead of the model in it; empty when it holds none."""
    inner = folder / "model"
    return f"; did you mean \"model.name='{inner}'\"?" if (inner / "config.json").is_file() else ""


def model_config_file(name: str, revision: Optional[str] = None) -> Optional[Path]:
    """config.json of a local folder or of the newest copy in the Hub cache; None when it is not on this machine."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache  # imports no torch

    if not HUB_ID.fullmatch(name):
        return None
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached) if isinstance(cached, str) else None
