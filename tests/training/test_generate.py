"""What is scored by exact match, and what is only a sample to read."""

from types import SimpleNamespace
from typing import Any

import pytest

from sft_experiments.data.formats import Prompt
from sft_experiments.training.generate import answer_validation

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
