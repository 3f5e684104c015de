"""The shape of a decoder, from its config alone: what the memory and time estimates are computed from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from sft_experiments.plan.size import model_config_file
from sft_experiments.schema import ModelConfig, ModelSource

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
    experts: int = 1  # MLPs whose weights exist; ``width`` counts the active ones
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
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.width * self.experts)

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
        width, experts = (config.get("moe_intermediate_size") or width) * active, experts // active
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
