"""Where a model comes from and what shape it has, from its config alone; what is wrong with it is said at once.

The estimates of memory and time are computed from the shape.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from sft_experiments.errors import ModelError
from sft_experiments.models.hub import hub_commit, hub_is_offline
from sft_experiments.schema import ModelConfig, ModelSource

_CAUSAL = re.compile(r"ForCausalLM|LMHeadModel|ForConditionalGeneration|ForImageTextToText")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # the Hub's oldest models have no owner: "gpt2"


def check_model_source(model: ModelConfig) -> Optional[str]:
    """Look at a folder or ask the Hub, without loading weights. Returns the commit of a Hub model, else None.

    Raises ``ModelError`` for a folder that is missing or holds no causal language model, GGUF, damaged weight files,
    remote code without its flag, and a Hub model that is absent, gated, or neither cached nor reachable.
    """
    if model.source is ModelSource.random:
        return None
    _check_no_gguf(model.name)
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        _check_folder(folder, model)
        return None
    if not HUB_ID.fullmatch(model.name):
        raise ModelError(f"model.name={model.name}: no such folder (looked in {Path.cwd()}), and not a Hub id")
    return _check_hub(model)


def _check_no_gguf(name: str) -> None:
    """GGUF is for inference: transformers reads it, but saves neither model nor checkpoint in it."""
    path = Path(name).expanduser()
    files = [path] if name.lower().endswith(".gguf") else sorted(path.glob("*.gguf"))
    if files and not _weight_files(path):
        raise ModelError(
            f"model.name={name}: {files[0].name} is GGUF, which cannot be trained; convert it once with transformers:"
            f" AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={files[0].name!r}, quantization_config="
            "GgufConfig(dequantize=True)).save_pretrained(NEW), and the tokenizer likewise (docs/models.md)"
        )


def _weight_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])


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
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # slow: transformers, seconds

    return config.get("model_type") in CONFIG_MAPPING_NAMES


def _check_weight_files(folder: Path) -> None:
    """Weights must be there, every shard of them, and whole: an interrupted download is found by the file's size."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"model.name={folder}: {len(missing)} of {len(shards)} shards are missing: {missing[0]}")
    if not _weight_files(folder):
        raise ModelError(f"model.name={folder} has no weights: neither *.safetensors nor pytorch_model*.bin")
    for file in sorted(folder.glob("*.safetensors")):
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


def inner_model(folder: Path) -> str:
    """A hint for someone who names a run folder instead of the model in it; empty when it holds none."""
    inner = folder / "model"
    return f"; did you mean \"model.name='{inner}'\"?" if (inner / "config.json").is_file() else ""


def model_config_file(name: str, revision: Optional[str] = None) -> Optional[Path]:
    """config.json of a local folder or of the newest copy in the Hub cache; None when it is not on this machine."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache  # slow: 0.1 s that no local model needs; imports no torch

    if not HUB_ID.fullmatch(name):
        return None
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached) if isinstance(cached, str) else None


DEMO_VOCABULARY = 531  # of data.demo.build_demo_tokenizer; a test compares them
NOT_GATED = {"gpt2", "opt", "gpt_neo", "gpt_neox", "bloom", "phi"}
TYPICAL_VOCABULARY = 128_000


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    width: int  # of the MLP, all active experts together
    vocabulary: int
    tied: bool  # input and output embedding are one matrix
    gated: bool = True  # SwiGLU and the like: three matrices instead of two
    experts: float = 1  # MLPs whose weights exist, for each active one; ``width`` counts the active ones
    source: str = "its config"  # where the sizes come from

    @property
    def query_size(self) -> int:
        return self.heads * self.head_size

    @property
    def key_value_size(self) -> int:
        return self.key_value_heads * self.head_size

    @property
    def linear_parameters(self) -> int:
        """Weights of the matrices inside the layers, those of all experts."""
        attention = self.hidden * (2 * self.query_size + 2 * self.key_value_size)
        mlp = round((3 if self.gated else 2) * self.hidden * self.width * self.experts)
        return self.layers * (attention + mlp)

    @property
    def parameters(self) -> int:
        """All weights, norms included, biases left out."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear_parameters + embeddings + (2 * self.layers + 1) * self.hidden

    def lora_parameters(self, r: int) -> int:
        """Weights of rank-r adapters on every linear layer: r x (inputs + outputs) each (arXiv:2106.09685)."""
        hidden, width = self.hidden, self.width
        attention = 2 * (hidden + self.query_size) + 2 * (hidden + self.key_value_size)
        mlp = (3 if self.gated else 2) * (hidden + width)
        return r * self.layers * (attention + mlp)


def shape_of(model: ModelConfig) -> Optional[Shape]:
    """The shape from ``model.config``, a local config.json, or, failing both, a typical one of that many parameters.

    None when nothing is known.
    """
    if model.source is ModelSource.random:
        return from_config({"vocab_size": _tokenizer_size(model), **model.config}, "model.config")
    file = model_config_file(model.name, model.revision)
    if file is not None:
        return from_config(json.loads(file.read_text(encoding="utf-8")), "config.json")
    return typical_shape(model.num_parameters) if model.num_parameters else None


def from_config(config: dict[str, Any], source: str = "its config") -> Optional[Shape]:
    """The shape from a transformers config; None when it names no sizes."""
    config = config.get("text_config") or config
    hidden = config.get("hidden_size") or config.get("n_embd")
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    vocabulary = config.get("vocab_size")
    if not (hidden and layers and vocabulary):
        return None
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    width = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    if experts > 1:
        active = config.get("num_experts_per_tok") or 1
        width, experts = (config.get("moe_intermediate_size") or width) * active, experts / active
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or hidden // heads,
        width=width,
        vocabulary=vocabulary,
        tied=bool(config.get("tie_word_embeddings", False)),
        gated=config.get("model_type") not in NOT_GATED,
        experts=experts,
        source=source,
    )


def typical_shape(num_parameters: float) -> Shape:
    """A Llama-like shape of about so many parameters: hidden = 128 x layers, MLP 3.5 x, four queries to a key.

    Then a layer has 12.9 x hidden^2 weights. Llama 3 (arXiv:2407.21783, table 3) is 4096 x 32 and 8192 x 80.
    """
    candidates = [_llama_like(layers) for layers in range(1, 200)]
    return min(candidates, key=lambda shape: abs(shape.parameters - num_parameters))


def _llama_like(layers: int) -> Shape:
    hidden = 128 * layers
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=layers,
        key_value_heads=max(1, layers // 4),
        head_size=128,
        width=int(3.5 * hidden),
        vocabulary=TYPICAL_VOCABULARY,
        tied=hidden < 3500,
        source="a typical shape of that size (config.json is not on this machine)",
    )


def _tokenizer_size(model: ModelConfig) -> Optional[int]:
    """Vocabulary of a model that is built at random: its config says none, so it is the tokenizer's."""
    if model.tokenizer == "demo":
        return DEMO_VOCABULARY
    file = Path(model.tokenizer or model.name).expanduser() / "tokenizer.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    added = [int(token["id"]) for token in content.get("added_tokens", [])]
    return max([len(content["model"]["vocab"]) - 1, *added]) + 1


TINY_BELOW = 10e6
BOUNDARIES = [(TINY_BELOW, "tiny"), (math.sqrt(3e9 * 7e9), "1b_3b"), (math.sqrt(13e9 * 30e9), "7b_13b")]
LARGEST = "30b_70b"


def size_class(num_parameters: float) -> str:
    """The column of the table for a number of parameters."""
    return next((name for limit, name in BOUNDARIES if num_parameters < limit), LARGEST)


def size_class_of(name: str, revision: Optional[str] = None) -> str:
    """The size class of a local folder or Hub id, without loading weights.

    A model's config is read from its folder or from the local Hub cache; failing that, a size in the name counts
    ("Qwen3-8B"). Raises ``ModelError`` when neither tells, and for GGUF.
    """
    _check_no_gguf(name)
    config = model_config_file(name, revision)
    if config is None and (hint := inner_model(Path(name).expanduser())):
        raise ModelError(f"model.name={name}: no config.json in this folder{hint}")
    if config is not None:
        shape = from_config(json.loads(config.read_text(encoding="utf-8")))
        if shape is None:
            raise ModelError(
                f"{config} tells no hidden_size, num_hidden_layers and vocab_size; give model.size_class=..."
            )
        return size_class(shape.parameters)
    from_name = parameters_in_name(name) if HUB_ID.fullmatch(name) else None
    if from_name is None:
        raise ModelError(
            f"model.name={name}: no config.json in such a folder or in the local Hub cache, and no size like '8B' in"
            " the name; give model.size_class=1b_3b, 7b_13b or 30b_70b"
        )
    return size_class(from_name)


def parameters_in_name(name: str) -> Optional[float]:
    """2e9 from ``SmolLM-2B``, 1.35e8 from ``smollm-135M``; None when the name holds no size."""
    match = re.search(r"(?<![A-Za-z0-9])(\d+(?:[._]\d+)?)([BbMm])(?![A-Za-z0-9])", name.rsplit("/", 1)[-1])
    if match is None:
        return None
    return float(match.group(1).replace("_", ".")) * (1e9 if match.group(2) in "Bb" else 1e6)


PEAK_TFLOPS = {
    # Per device: dense bf16 (fp16 where marked) with fp32 accumulation, from the vendor's data sheet.
    # Names are matched as substrings of torch.cuda.get_device_name(), in this order.
    "B200": 2250.0,  # NVIDIA HGX B200 data sheet
    "H200": 989.4,  # NVIDIA H200 data sheet (SXM)
    "H100 PCIe": 756.5,  # NVIDIA H100 data sheet
    "H100 NVL": 835.5,
    "H100": 989.4,  # SXM
    "A100": 312.0,  # NVIDIA A100 data sheet
    "L40S": 362.0,  # NVIDIA L40S data sheet
    "L4": 121.0,  # NVIDIA L4 data sheet
    "A10G": 70.0,  # AWS G5: half of the A10's 125
    "A10": 125.0,  # NVIDIA A10 data sheet
    "V100": 125.0,  # fp16, NVIDIA V100 data sheet (SXM2)
    "T4": 65.0,  # fp16, NVIDIA T4 data sheet
    "RTX 4090": 165.2,  # NVIDIA Ada architecture white paper, fp32 accumulate
    "RTX 3090": 71.0,  # NVIDIA Ampere GA102 white paper, fp32 accumulate
}


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of one device in 16-bit training, or None when it is not in the table (then there is no MFU)."""
    return next((peak * 1e12 for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def training_flops_per_token(
    matmul_parameters: float, trainable_fraction: float, num_layers: int, hidden_size: int, mean_length: float
) -> float:
    """FLOPs of forward and backward for one token, recomputation not counted.

    ``matmul_parameters``: all but the input embedding (a tied head counts once). A parameter costs 2 FLOPs forward,
    2 for the gradient of its input and, when it is trained, 2 for its own gradient: 6N for full fine-tuning (PaLM,
    appendix B, https://arxiv.org/abs/2204.02311), about 4N for adapters. Causal attention over documents of
    ``mean_length`` tokens adds 6 x layers x hidden x length (half of PaLM's 12, since half of the scores are masked).
    """
    return matmul_parameters * (4 + 2 * trainable_fraction) + 6 * num_layers * hidden_size * mean_length
