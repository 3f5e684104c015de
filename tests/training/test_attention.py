"""The attention is chosen for the model and device at hand, with its reason."""

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from sft_experiments.errors import ConfigError, MissingDependencyError
from sft_experiments.training import attention
from sft_experiments.training.attention import PACKED, choose_attention
from tests.training.trainer_setup import small_config


def test_auto_takes_documents_apart_packed_or_not() -> None:
    config = small_config("llama")
    assert choose_attention("auto", True, "cpu", "fp32", config).value == PACKED
    assert choose_attention("auto", False, "cpu", "fp32", config).value == PACKED
    assert choose_attention("eager", True, "cpu", "fp32", config).value == "eager"


def test_models_beyond_sdpa_get_eager_with_the_reason() -> None:
    capped = choose_attention("auto", True, "cpu", "fp32", small_config("gemma2"))
    assert capped.value == "eager" and "attn_logit_softcapping=50.0" in capped.reason
    sinks = choose_attention("auto", True, "cpu", "fp32", small_config("gpt_oss", layer_types=["full_attention"] * 2))
    assert sinks.value == "eager" and "gpt_oss" in sinks.reason


@pytest.mark.parametrize("model_type", ["mamba", "qwen3_next"])
def test_packing_is_refused_where_layers_would_mix_documents(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    with pytest.raises(ConfigError, match=r"dataset\.packing"):
        choose_attention("auto", True, "cpu", "fp32", config)
    assert choose_attention("auto", False, "cpu", "fp32", config).value in ("sdpa", "eager")


def test_on_a_gpu_the_best_installed_kernel_is_taken_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice only; the kernels themselves need the device."""
    config = small_config("llama")
    installed: set[str] = set()

    def found(name: str) -> object:
        return name in installed or None if name.startswith("flash") else find_spec(name)

    monkeypatch.setattr(attention, "find_spec", found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert "varlen_attn" in choose_attention("auto", True, "cuda", "bf16", config).reason
    assert "head size 12" in choose_attention("auto", True, "cuda", "bf16", small_config("llama", head_dim=12)).reason
    installed.add("flash_attn")
    assert choose_attention("auto", True, "cuda", "bf16", config).value == "flash_attention_2"
    installed.add("flash_attn_interface")
    assert choose_attention("auto", True, "cuda", "bf16", config).value == "flash_attention_3"
    in_fp32 = choose_attention("auto", True, "cuda", "fp32", config)
    assert in_fp32.value == PACKED and "fp32" in in_fp32.reason
    with pytest.raises(ConfigError, match=r"model\.attn_implementation=flash_attention_2 computes in bf16 only"):
        choose_attention("flash_attention_2", True, "cuda", "fp32", config)
    assert choose_attention("flash_attention_2", True, "cuda", "pure_bf16", config).value == "flash_attention_2"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    turing = choose_attention("auto", True, "cuda", "bf16", config)
    assert turing.value == PACKED and "Ampere" in turing.reason


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_asking_for_flash_attention_without_it_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"sft-experiments\[flash\]"):
        choose_attention("flash_attention_2", False, "cuda", "bf16", LlamaConfig())
