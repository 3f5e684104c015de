"""The probe must see a leak wherever there is one, and none where there is none."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)
from transformers.integrations.flash_attention import get_target_dtype
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_experiments.commands import main
from sft_experiments.errors import ModelError
from sft_experiments.runs.folder import find_run_folders
from sft_experiments.runs.plan_file import read_plan
from sft_experiments.training.attention import PACKED, check_packing, packed_attention, probe_packing

collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)


def build_llama(attention, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).to(dtype)


def with_full_mask(examples):
    """What makes position ids useless: an attention mask of ones."""
    batch = collate(examples)
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def without_position_ids(examples):
    """Packing as a plain concatenation."""
    return {"input_ids": collate(examples)["input_ids"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_kept_apart_pass(attention, dtype):
    probe = check_packing(build_llama(attention, dtype), collate)
    assert probe.max_change == 0.0 and probe.largest_logit > 0


@pytest.mark.parametrize("leaky", [with_full_mask, without_position_ids])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_leak_is_refused_with_what_to_do(attention, leaky):
    with pytest.raises(ModelError, match=r"sees the one before it .*set dataset\.packing=none"):
        check_packing(build_llama(attention), leaky)


def test_layers_that_mix_along_the_sequence_are_refused():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        check_packing(mamba, collate)


def test_logits_that_are_not_numbers_do_not_pass():
    model = build_llama("sdpa")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    assert probe_packing(model, collate).leaks


@pytest.mark.slow
def test_the_probe_runs_the_kernel_that_trains(tmp_path, monkeypatch):
    """A kernel with flash-attn's own check of its inputs, behind upstream's cast: it refuses outside of autocast."""
    documents = []

    def kernel(module, query, key, value, mask, **kwargs):
        target = get_target_dtype(query, module) or query.dtype
        if target not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        documents.append(kwargs["cu_seq_lens_q"].diff().tolist() if kwargs.get("cu_seq_lens_q") is not None else None)
        return packed_attention(module, query.to(target), key.to(target), value.to(target), mask, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED, kernel)
    monkeypatch.chdir(tmp_path)
    overrides = ["train.precision=bf16", "dataset.packing=bfd", "compute=cpu", "compute.isolate=false"]
    small = ["dataset.demo.num_train=40", "dataset.demo.num_validation=8", "train.max_steps=1", "logger=none"]
    assert main(["train", *small, *overrides, "generation.num_samples=0", "generation.exact_match_rows=0"]) == 0
    assert documents[:4] == [[16, 16]] * 4  # two packs through two layers


def test_the_probe_leaves_no_trace():
    model = build_llama("sdpa").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    probe_packing(model, collate)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


OF_THEIR_OWN = {
    "falcon": "the model takes no attention but its own",
    "doge": "rows of this model would see each other",
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OF_THEIR_OWN)
def test_a_model_that_cannot_have_our_attention_is_trained_in_padded_batches(
    model_type: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = [f"model.config.model_type={model_type}", "~model.config.initializer_range"]
    small = ["dataset.demo.num_train=40", "dataset.demo.num_validation=8", "train.max_steps=1", "logger=none"]
    rest = ["compute=cpu", "compute.isolate=false", "generation.num_samples=0", "generation.exact_match_rows=0"]
    assert main(["train", *small, *rest, *shape]) == 0
    (folder,) = find_run_folders(tmp_path)
    attention = read_plan(folder).attention
    assert attention is not None and attention.value == "sdpa"
    assert OF_THEIR_OWN[model_type] in attention.reason
    assert main(["train", *small, *rest, *shape, "dataset.packing=bfd"]) == 2
