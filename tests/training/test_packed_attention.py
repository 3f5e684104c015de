"""Packed rows give what their documents give alone: in values, in gradients, and nothing crosses over."""

import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_experiments.training import attention
from sft_experiments.training.attention import PACKED, attention_by_document, attention_by_kernel, packed_mask
from sft_experiments.training.trainer import ExperimentTrainer
from tests.training.trainer_setup import CAUSAL, make_trainer, small_config

Build = Callable[..., Any]
LENGTHS = (7, 1, 20, 12)


def _documents(vocabulary: int = 320) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def _packed(documents: list[list[int]]) -> dict[str, Any]:
    """One packed row, as TRL's collator builds it."""
    row = {"input_ids": list(chain.from_iterable(documents)), "seq_lengths": [len(document) for document in documents]}
    batch: dict[str, Any] = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([row])
    batch.pop("labels")
    return batch


def _logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = model(**batch, use_cache=False).logits[0]
    return logits


# ---- exactness


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_values_and_gradients_equal_those_of_the_documents_alone(
    key_heads: int, checkpointing: bool, tiny_model: Build
) -> None:
    alone, packed = (tiny_model(name, num_key_value_heads=key_heads).train() for name in ("sdpa", PACKED))
    if checkpointing:
        packed.activation_checkpointing_enable({"use_reentrant": False})
    documents = _documents()
    expected = torch.cat([_logits(alone, {"input_ids": torch.tensor([document])}) for document in documents])
    result = _logits(packed, _packed(documents))
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (result * weights).sum().backward()
    for (name, ours), theirs in zip(packed.named_parameters(), alone.parameters(), strict=True):
        scale = theirs.grad.abs().max()
        assert ((ours.grad - theirs.grad).abs().max() / scale).item() < 1e-5, name


@pytest.mark.parametrize("model_type", [name for name in CAUSAL if name != "gemma2"])
@pytest.mark.parametrize("window", [5, 64])
def test_every_supported_architecture_equals_its_dense_mask(model_type: str, window: int) -> None:
    config = small_config(model_type)
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = window  # 5 cuts documents, 64 does not
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    batch = _packed(_documents())
    model.set_attn_implementation("eager")
    expected = _logits(model, batch)
    model.set_attn_implementation(PACKED)
    torch.testing.assert_close(_logits(model, batch), expected, atol=2e-6, rtol=1e-5)


def test_no_dense_mask_is_built_for_packed_rows(tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise AssertionError("a dense mask was built")

    monkeypatch.setattr(attention, "sdpa_mask", refuse)
    _logits(tiny_model(PACKED), _packed(_documents()))


# ---- leaks


@pytest.mark.parametrize("with_lengths", [True, False])
def test_changing_one_document_changes_no_bit_of_the_others(with_lengths: bool, tiny_model: Build) -> None:
    """Also without cu_seq_lens, when only the position ids tell documents apart."""
    model = tiny_model(PACKED).eval()
    documents = _documents()
    other = [*documents[:2], [(token % 300) + 5 for token in documents[2]], documents[3]]
    results = []
    for content in (documents, other):
        batch = _packed(content)
        if not with_lengths:
            batch = {key: batch[key] for key in ("input_ids", "position_ids")}
        results.append(_logits(model, batch))
    start, end = sum(LENGTHS[:2]), sum(LENGTHS[:3])
    changed = (results[0] != results[1]).any(-1)
    assert changed[start:end].all() and not changed[:start].any() and not changed[end:].any()


def test_several_packed_rows_in_one_batch_stay_apart(tiny_model: Build) -> None:
    documents = _documents()
    rows = [documents, documents[::-1]]
    positions = [[p for document in row for p in range(len(document))] for row in rows]
    batch = {
        "input_ids": torch.tensor([list(chain.from_iterable(row)) for row in rows]),
        "position_ids": torch.tensor(positions),
    }
    result = tiny_model(PACKED).eval()(**batch, use_cache=False).logits
    alone = tiny_model().eval()
    for logits, row in zip(result, rows, strict=True):
        expected = torch.cat([_logits(alone, {"input_ids": torch.tensor([document])}) for document in row])
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


def test_lengths_keep_documents_apart_even_when_the_model_builds_no_packed_mask(tiny_model: Build) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    starts = torch.tensor([0, 5, 8], dtype=torch.int32)
    module = tiny_model().model.layers[0].self_attn
    output, _ = attention.packed_attention(module, query, key, value, None, cu_seq_lens_q=starts, max_length_q=5)
    alone = F.scaled_dot_product_attention(
        query[:, :, 5:], key[:, :, 5:], value[:, :, 5:], is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(output[:, 5:], alone.transpose(1, 2))


def test_masks_that_look_forward_are_left_dense() -> None:
    blocks = torch.tensor([0, 0, 1, 1])

    def within_blocks(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return blocks[query] == blocks[key]

    mask = packed_mask(1, 4, 4, mask_function=within_blocks, allow_is_causal_skip=False)
    assert mask is not None and mask.shape == (1, 1, 4, 4)


# ---- generation, evaluation, saved models


def test_padded_batches_and_generation_equal_sdpa(tiny_model: Build) -> None:
    plain, ours = tiny_model().eval(), tiny_model(PACKED).eval()
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = (ids != 0).long()
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "output_logits": True}
    answers = [
        model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **settings) for model in (plain, ours)
    ]
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    assert torch.equal(torch.stack(answers[0].logits), torch.stack(answers[1].logits))
    assert torch.equal(plain(ids, attention_mask=mask).logits, ours(ids, attention_mask=mask).logits)


def test_training_packed_then_evaluating_and_generating_equals_sdpa(
    tiny_model: Build, tiny_rows: Build, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    results = []
    for name in ("sdpa", PACKED):
        trainer = make_trainer(
            ExperimentTrainer,
            tiny_model(name),
            tiny_rows(),
            tiny_tokenizer,
            tmp_path / name,
            eval_rows=tiny_rows(7, seed=4),
            eval_packing=False,
            packing=True,
            max_length=64,
            max_steps=3,
            learning_rate=1e-2,
        )
        trainer.train()
        losses = [event["loss"] for event in trainer.state.log_history if "loss" in event]
        model = trainer.model.eval()
        answer = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False).tolist()
        results.append((losses, trainer.evaluate()["eval_loss"], answer))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)
    assert results[0][2] == results[1][2]


def test_bf16_autocast_stays_within_bf16_rounding(tiny_model: Build) -> None:
    batch = _packed(_documents())
    exact = _logits(tiny_model(PACKED).eval(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = _logits(tiny_model(PACKED).eval(), batch)
    torch.testing.assert_close(rounded.float(), exact, atol=0.02, rtol=0.05)


def test_a_saved_model_loads_without_this_package(tiny_model: Build, tmp_path: Path) -> None:
    tiny_model(PACKED).save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        "print(A.from_pretrained(sys.argv[1]).config._attn_implementation, 'sft_experiments' in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["sdpa", "False"]


# ---- the CUDA kernel's two signatures, with SDPA in its place


def _kernel_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return _stand_in(query, key, value, cu_seq_q, max_q, scale)


def _kernel_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    assert is_causal
    assert query.shape == key.shape == value.shape
    return _stand_in(query, key, value, cu_seq_q, max_q, None)


def _stand_in(query, key, value, starts, longest, scale):
    assert starts.dtype == torch.int32 and longest == starts.diff().max()
    row = tuple(states.transpose(0, 1) for states in (query, key, value))
    return attention_by_document(row, starts.diff().tolist(), 0.0, scale)


@pytest.mark.parametrize("kernel", [_kernel_2_13, _kernel_2_10])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_both_kernel_signatures_get_what_they_need(kernel: Any, scaling: float | None) -> None:
    torch.manual_seed(0)
    row = torch.randn(4, 12, 8), torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    starts = torch.tensor([0, 5, 12], dtype=torch.int32)
    result = attention_by_kernel(kernel, row, starts, 7, scaling)
    torch.testing.assert_close(result, attention_by_document(row, [5, 7], 0.0, scaling))


def test_the_installed_kernel_has_a_signature_that_we_know() -> None:
    import inspect

    run = attention.varlen_kernel()
    assert run is not None
    names = list(inspect.signature(run).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert "window_size" in names or "is_causal" in names
