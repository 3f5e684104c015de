"""Size is the dial: which size class a model belongs to, from its config alone, and what the class recommends.

The table of recommended values stands in ``conf/model/size/*.yaml``. Models between the columns belong to the
class whose side of the geometric mean they are on: 3B | 4.6B | 7B and 13B | 19.7B | 30B.
"""

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf

from sft_experiments.errors import ConfigError, ModelError

TINY_BELOW = 10e6
BOUNDARIES = [(TINY_BELOW, "tiny"), (math.sqrt(3e9 * 7e9), "1b_3b"), (math.sqrt(13e9 * 30e9), "7b_13b")]
LARGEST = "30b_70b"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def size_class(num_parameters: float) -> str:
    """The column of the table for a number of parameters."""
    return next((name for limit, name in BOUNDARIES if num_parameters < limit), LARGEST)


def size_class_of(name: str, revision: Optional[str] = None) -> str:
    """The size class of a local folder or Hub id, without loading weights.

    A model's config is read from its folder or from the local Hub cache; failing that, a size in the name counts
    ("Qwen3-8B"). Raises ``ModelError`` when neither tells.
    """
    config = model_config_file(name, revision)
    if config is None and (hint := inner_model(Path(name).expanduser())):
        raise ModelError(f"model.name={name}: no config.json in this folder{hint}")
    if config is not None:
        return size_class(count_parameters(json.loads(config.read_text(encoding="utf-8"))))
    from_name = parameters_in_name(name) if HUB_ID.fullmatch(name) else None
    if from_name is None:
        raise ModelError(
            f"model.name={name}: no config.json in such a folder or in the local Hub cache, and no size like '8B' in"
            " the name; give model.size_class=1b_3b, 7b_13b or 30b_70b"
        )
    return size_class(from_name)


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


def parameters_in_name(name: str) -> Optional[float]:
    """2e9 from ``SmolLM-2B``, 1.35e8 from ``smollm-135M``; None when the name holds no size."""
    match = re.search(r"(?<![A-Za-z0-9])(\d+(?:[._]\d+)?)([BbMm])(?![A-Za-z0-9])", name.rsplit("/", 1)[-1])
    if match is None:
        return None
    return float(match.group(1).replace("_", ".")) * (1e9 if match.group(2) in "Bb" else 1e6)


def count_parameters(config: dict[str, Any]) -> float:
    """Parameters of a decoder from its transformers config: embeddings, attention and (gated) MLP, experts counted.

    Within a few percent for Llama-type models; norms and biases are left out.
    """
    config = config.get("text_config", config)
    hidden = config.get("hidden_size", config.get("n_embd"))
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    vocabulary = config.get("vocab_size")
    if not (hidden and layers and vocabulary):
        raise ModelError(
            "config.json tells no hidden_size, num_hidden_layers and vocab_size; give model.size_class=..."
        )
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    head_size = config.get("head_dim") or hidden // heads
    key_value_heads = config.get("num_key_value_heads") or heads
    attention = hidden * head_size * (2 * heads + 2 * key_value_heads)
    gated = config.get("model_type") not in {"gpt2", "opt", "gpt_neo", "gpt_neox", "bloom", "phi"}
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    width = config.get("moe_intermediate_size") if experts > 1 else None
    width = width or config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    mlp = (3 if gated else 2) * hidden * width * experts
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return float(layers * (attention + mlp) + embeddings)


@lru_cache
def size_table(conf: Path, size: str) -> dict[str, Any]:
    """The recommended values of a size class, from conf/model/size."""
    file = conf / "model" / "size" / f"{size}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise ConfigError(f"model.size_class={size}: no such size class; allowed: {known}")
    values = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(values, dict)
    return dict(values["recommended"])


def recommended_value(conf: Path, size: str, key: str) -> Any:
    return size_table(conf, size)[key]
