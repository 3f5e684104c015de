"""What a model is handed on with stops where its answers end, and is never what transformers refuses to save."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from sft_experiments.training.model import carry_generation_config


@pytest.mark.parametrize(
    ("own", "ends", "expected"), [(None, [5], [2, 5]), (7, [5], [2, 5, 7]), ([7, 8], [], [2, 7, 8]), (2, [], 2)]
)
def test_it_stops_at_the_models_end_the_tokenizers_and_the_datas(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, own: Any, ends: list[int], expected: Any
) -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig(eos_token_id=own)
    assert tiny_tokenizer.eos_token_id == 2
    assert carry_generation_config(model, tiny_tokenizer, ends) == []
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == expected


def brought(**values: Any) -> GenerationConfig:
    """As it is read from a file: unchecked."""
    config = GenerationConfig(eos_token_id=7)
    for name, value in values.items():
        setattr(config, name, value)
    return config


def test_sampling_settings_of_one_that_does_not_sample_are_left_out_with_a_note(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model()
    model.generation_config = brought(do_sample=False, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    (note,) = carry_generation_config(model, tiny_tokenizer, [])
    assert "do_sample=false" in note
    model.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.temperature, saved.repetition_penalty, saved.eos_token_id) == (None, 1.1, [2, 7])


def test_one_that_is_wrong_in_another_way_gives_way_to_defaults_with_its_ids(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model()
    model.generation_config = brought(do_sample=True, max_new_tokens=-1)
    (note,) = carry_generation_config(model, tiny_tokenizer, [])
    assert "defaults took its place" in note
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2, 7]


def test_one_that_may_be_saved_keeps_its_settings(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    model.generation_config = brought(do_sample=True, temperature=0.6, top_k=20)
    assert carry_generation_config(model, tiny_tokenizer, []) == []
    assert (model.generation_config.temperature, model.generation_config.top_k) == (0.6, 20)
