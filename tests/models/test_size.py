"""Choosing a model chooses its defaults: size classes from configs and names, the table from conf/."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from sft_experiments.config.hydra import conf_dir, size_table
from sft_experiments.errors import ConfigError, ModelError
from sft_experiments.models.shape import from_config, parameters_in_name, size_class, size_class_of


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [(1e6, "tiny"), (0.1e9, "1b_3b"), (3e9, "1b_3b"), (4.5e9, "1b_3b"), (4.7e9, "7b_13b"), (13e9, "7b_13b"),
     (19e9, "7b_13b"), (20e9, "30b_70b"), (400e9, "30b_70b")],
)  # fmt: skip
def test_sizes_between_the_columns_go_to_the_nearer_one_in_ratio(parameters: float, expected: str) -> None:
    assert size_class(parameters) == expected


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4),
        Qwen3Config(vocab_size=900, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=32, tie_word_embeddings=True),
        GPT2Config(vocab_size=700, n_embd=64, n_layer=2, n_head=4, n_positions=16),
        Qwen3MoeConfig(vocab_size=500, hidden_size=64, moe_intermediate_size=32, num_hidden_layers=2, head_dim=16,
                       num_attention_heads=4, num_key_value_heads=2, num_experts=15, num_experts_per_tok=2),
    ],
    ids=["llama", "qwen3", "gpt2", "seven and a half experts to an active one"],
)  # fmt: skip
def test_counted_parameters_are_within_five_percent_of_the_real_model(config: LlamaConfig) -> None:
    real = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    shape = from_config(config.to_dict())
    assert shape is not None
    assert shape.parameters == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen/Qwen3-8B", 8e9), ("org/smollm-135M", 135e6), ("org/Some-1.7B-Instruct", 1.7e9), ("org/plain", None),
     ("org/v2b-model", None)],
)  # fmt: skip
def test_a_size_in_the_name_is_understood(name: str, parameters: float | None) -> None:
    assert parameters_in_name(name) == parameters


def test_a_local_folder_is_classified_by_its_config(tmp_path: Path) -> None:
    llama_8b = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128256, "num_attention_heads": 32,
                "num_key_value_heads": 8, "intermediate_size": 14336}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(llama_8b))
    assert size_class_of(str(tmp_path)) == "7b_13b"


def test_an_unknown_model_without_a_size_names_the_key_to_give() -> None:
    with pytest.raises(ModelError, match=r"model\.size_class"):
        size_class_of("nobody/nothing")


def test_recommended_values_lie_within_their_own_ranges() -> None:
    for size in ("tiny", "1b_3b", "7b_13b", "30b_70b"):
        table = size_table((conf_dir(),), size)
        for key in ("learning_rate", "effective_batch_size", "num_train_epochs", "warmup_ratio", "weight_decay"):
            low, high = table[f"{key}_range"]
            assert low <= table[key] <= high, (size, key)
        assert table["learning_rate"] in table["learning_rates"]


def test_an_unknown_size_class_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="1b_3b, 30b_70b, 7b_13b, tiny"):
        size_table((conf_dir(),), "9b")


def test_a_run_folder_in_place_of_its_model_is_answered_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"did you mean \"model.name='{tmp_path}/model'\""):
        size_class_of(f"{tmp_path}/")
