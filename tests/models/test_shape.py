"""Shapes come from a config alone, and count the same parameters as the model that is built from it."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sft_experiments.config.hydra import composed
from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.launch.trial import plan_run
from sft_experiments.models.shape import DEMO_VOCABULARY, from_config, shape_of

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 200, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def test_the_demo_vocabulary_is_the_demo_tokenizers() -> None:
    assert len(build_demo_tokenizer()) == DEMO_VOCABULARY


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "olmo2"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_in_the_built_model(family: str, tied: bool) -> None:
    values = {**SIZES, **HEADS, "tie_word_embeddings": tied, "model_type": family}
    shape = from_config(values)
    config = AutoConfig.for_model(family, **{key: value for key, value in values.items() if key != "model_type"})
    built = AutoModelForCausalLM.from_config(config).num_parameters()
    assert shape is not None
    assert shape.parameters == pytest.approx(built, rel=0.02)


def test_a_local_folder_tells_the_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **HEADS, "model_type": "llama"}))
    with composed(["model=hub", f"model.name={tmp_path}", "model.size_class=tiny"]) as composition:
        shape = shape_of(plan_run(composition).config.model)
    assert shape is not None
    assert (shape.hidden, shape.layers, shape.source) == (32, 3, "config.json")


def test_a_model_that_is_not_here_gets_a_typical_shape_that_says_so() -> None:
    with composed(["model=llama3_3_70b"]) as composition:
        shape = shape_of(plan_run(composition).config.model)
    assert shape is not None
    assert shape.parameters == pytest.approx(70.6e9, rel=0.05)
    assert "typical" in shape.source
