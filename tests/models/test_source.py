"""What is wrong with a model is said before anything is spent."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.errors import ModelError
from sft_experiments.models.shape import check_model_source, size_class_of
from sft_experiments.schema import ModelConfig, ModelSource
from sft_experiments.training.model import check_loaded_model


def config_of(name, **changes):
    return ModelConfig(name=str(name), source=ModelSource.pretrained, trust_remote_code=False, **changes)


def build_model(vocab_size):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab_size, **shape, bos_token_id=None, eos_token_id=4, pad_token_id=0)
    )


@pytest.fixture(scope="module")
def tokenizer():
    return build_demo_tokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_model(640).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder, said, **changes):
    with pytest.raises(ModelError, match=said):
        check_model_source(config_of(folder, **changes))


def test_a_good_folder_passes(folder):
    assert check_model_source(config_of(folder)) is None


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "nowhere" / "model", "no such folder")


def test_a_folder_without_config_says_what_it_holds(folder):
    (folder / "config.json").unlink()
    refused(folder, r"no config\.json \(it holds .*model\.safetensors")


def test_an_adapter_is_not_a_model(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, "LoRA adapter")


def test_broken_json_is_named(folder):
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json cannot be read")


def test_a_model_that_cannot_generate_text_is_refused(folder):
    change_config(folder, architectures=["BertForSequenceClassification"])
    refused(folder, "BertForSequenceClassification, not a causal language model")


def test_remote_code_needs_its_flag(folder):
    change_config(folder, model_type="own_thing", auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    refused(folder, r"brings its own code \(modeling_own\.OwnForCausalLM\)")
    allowed = config_of(folder)
    allowed.trust_remote_code = True
    check_model_source(allowed)


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights")


@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_of_gguf_alone_is_refused_with_the_way_out(folder, with_config):
    (folder / "model.safetensors").rename(folder / "tiny.Q4_1.gguf")
    if not with_config:
        (folder / "config.json").unlink()
    refused(folder, r"tiny\.Q4_1\.gguf is GGUF.*gguf_file='tiny\.Q4_1\.gguf', quantization_config=GgufConfig")
    with pytest.raises(ModelError, match="is GGUF"):  # model=hub asks for the size before all else
        size_class_of(str(folder))


@pytest.mark.parametrize("name", ["someone/models/tiny.Q4_1.gguf", "someone/tiny.gguf", "tiny.GGUF"])
def test_a_gguf_file_is_no_model_wherever_it_is(name):
    refused(name, r"tiny\S* is GGUF, which cannot be trained")


def test_a_gguf_file_beside_the_weights_is_left_alone(folder):
    (folder / "tiny.Q4_1.gguf").touch()
    assert check_model_source(config_of(folder)) is None


def test_a_download_that_stopped_early_is_found_by_its_size(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, r"model\.safetensors is damaged: \d+ bytes, its header says \d+")


def test_a_file_that_is_no_safetensors_is_damaged(folder):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs")
    refused(folder, "no readable safetensors header")


def test_missing_shards_are_counted(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"1 of 2 shards are missing: model-2\.safetensors")


def test_a_hub_model_that_is_not_here_is_refused_within_two_seconds(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    refused("nobody/nothing-1b", "not in the local Hub cache, and HF_HUB_OFFLINE is set")
    assert time.monotonic() - started < 2


def test_a_hub_that_does_not_answer_is_said_within_seconds(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    started = time.monotonic()
    refused("nobody/nothing-1b", "did not answer within 2 seconds")
    assert time.monotonic() - started < 4


def test_a_model_built_at_random_needs_no_source():
    assert check_model_source(ModelConfig(name="tiny", source=ModelSource.random)) is None


def test_looking_at_the_source_imports_nothing_heavy():
    code = (
        "import sys, sft_experiments.models.shape\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_loaded_model_that_fits_has_no_notes(tokenizer):
    assert check_loaded_model(build_model(len(tokenizer)), tokenizer) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_named(tokenizer, value):
    model = build_model(len(tokenizer))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] = value
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight holds 1 NaN or Inf"):
        check_loaded_model(model, tokenizer)


def test_embeddings_smaller_than_the_vocabulary_are_refused_with_both_numbers(tokenizer):
    with pytest.raises(ModelError, match=f"hold 100 tokens, the tokenizer needs {len(tokenizer)}"):
        check_loaded_model(build_model(100), tokenizer)


def test_special_ids_that_disagree_are_noted_and_impossible_ones_refused(tokenizer):
    model = build_model(len(tokenizer))
    model.config.eos_token_id = 7
    assert check_loaded_model(model, tokenizer) == [
        "eos_token_id: the tokenizer has 4, the model 7; the tokenizer's is used"
    ]
    model.config.eos_token_id = [4, 7]
    assert check_loaded_model(model, tokenizer) == []
    model.config.pad_token_id = 99999
    with pytest.raises(ModelError, match="pad_token_id=99999 is outside"):
        check_loaded_model(model, tokenizer)
