"""The model gate: what is wrong with a model is said before anything is spent, in one line, within seconds."""

import json
import re
import struct
from pathlib import Path
from typing import Any, Optional

from sft_experiments.data.hub import hub_commit, hub_is_offline
from sft_experiments.errors import ModelError
from sft_experiments.plan.size import inner_model, model_config_file
from sft_experiments.schema import ModelConfig, ModelSource

_CAUSAL = re.compile(r"ForCausalLM|LMHeadModel|ForConditionalGeneration|ForImageTextToText")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
    if not _HUB_ID.fullmatch(model.name):
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


def check_loaded_model(model: Any, tokenizer: Any) -> list[str]:
    """Weights and vocabulary of a loaded model against its tokenizer; returns what is odd but can be trained.

    Raises ``ModelError`` for NaN or Inf weights, embeddings smaller than the vocabulary, and special ids outside of it.
    """
    _check_finite(model)
    rows = int(model.get_input_embeddings().weight.shape[0])
    needed = max(tokenizer.get_vocab().values()) + 1
    if rows < needed:
        raise ModelError(
            f"the embeddings hold {rows} tokens, the tokenizer needs {needed}: model and tokenizer do not belong "
            "together, or tokens were added without resizing"
        )
    return _special_id_notes(model.config.get_text_config(), tokenizer, rows)


def _check_finite(model: Any) -> None:
    import torch

    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            raise ModelError(f"the weights are damaged: {name} holds {count} NaN or Inf values")


def _special_id_notes(config: Any, tokenizer: Any, rows: int) -> list[str]:
    """Disagreements about bos, eos and pad: the tokenizer's win, as the data are made with it."""
    notes = []
    for kind in ("bos", "eos", "pad"):
        ours, theirs = getattr(tokenizer, f"{kind}_token_id"), getattr(config, f"{kind}_token_id", None)
        known = theirs if isinstance(theirs, list) else [theirs]
        if any(token is not None and not 0 <= token < rows for token in known):
            raise ModelError(f"the model's {kind}_token_id={theirs} is outside its {rows} embeddings")
        if ours is not None and theirs is not None and ours not in known:
            notes.append(f"{kind}_token_id: the tokenizer has {ours}, the model {theirs}; the tokenizer's is used")
    return notes
