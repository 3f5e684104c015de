"""What is scored by exact match, and what is only a sample to read."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from sft_experiments.data.formats import Prompt
from sft_experiments.training.generate import answer, answer_validation, is_exact, ready_to_generate

PROMPTS = [Prompt([{"role": "user", "content": f"ka to {index}"}], "mi", skill="sum") for index in range(6)]


def answered(
    tokenizer: Any, model: Any, num_scored: int, verifiable: bool = True
) -> tuple[dict[str, float], list[Any]]:
    """Metrics, and ``exact`` of each of three samples."""
    generation = SimpleNamespace(num_samples=3, exact_match_rows=num_scored, max_new_tokens=2)
    config: Any = SimpleNamespace(generation=generation, dataset=SimpleNamespace(verifiable_answers=verifiable))
    data: Any = SimpleNamespace(prompts=PROMPTS, report=SimpleNamespace(end_of_turn_ids=[]))
    metrics, samples = answer_validation(model(), tokenizer, config, data, step=1)
    return metrics, [sample.exact for sample in samples]


@pytest.mark.parametrize(
    ("num_scored", "verifiable", "exact"),
    [(0, True, [None] * 3), (2, True, [False, False, None]), (5, True, [False] * 3), (5, False, [None] * 3)],
)
def test_only_the_first_rows_are_scored(
    tiny_tokenizer: Any, tiny_model: Any, num_scored: int, verifiable: bool, exact: list[Any]
) -> None:
    metrics, found = answered(tiny_tokenizer, tiny_model, num_scored, verifiable)
    assert found == exact
    assert set(metrics) == ({"eval_exact_match", "eval_exact_match/sum"} if num_scored and verifiable else set())


def test_what_the_template_puts_around_an_answer_is_no_mistake() -> None:
    prompt = replace(PROMPTS[0], supervised="<think>\n\n</think>\n\nmi")
    assert is_exact("mi", prompt) and is_exact("<think>\n\n</think>\n\nmi\n", prompt)
    assert not is_exact("<think>\n\n</think>\n\nma", prompt) and not is_exact("", replace(prompt, supervised=""))


def test_answers_are_decoded_by_our_settings_whatever_the_model_brings(tiny_tokenizer: Any, tiny_model: Any) -> None:
    model = tiny_model()
    plain = answer(model, tiny_tokenizer, PROMPTS[:2], 12)
    brought = GenerationConfig(repetition_penalty=50.0, do_sample=True, temperature=9.0, max_length=3)
    model.generation_config = brought
    assert [one.ids for one in answer(model, tiny_tokenizer, PROMPTS[:2], 12)] == [one.ids for one in plain]
    assert model.generation_config is brought


def test_the_models_own_settings_come_back_after_an_error(tiny_model: Any) -> None:
    model = tiny_model()
    own = model.generation_config
    with pytest.raises(ZeroDivisionError), ready_to_generate(model):
        raise ZeroDivisionError
    assert model.generation_config is own
