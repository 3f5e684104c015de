"""Greedy answers to validation prompts: samples to read, and exact match where answers are verifiable."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_experiments.data.formats import Prompt
from sft_experiments.data.prepare import PreparedData
from sft_experiments.runs.events import Sample
from sft_experiments.schema import Config

GENERATION_BATCH = 64


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
) -> list[str]:
    """One greedy answer per prompt, special tokens left out. Prompts are padded on the left in batches.

    An answer ends at the tokenizer's end token or at one of ``stop_ids``.
    """
    ends = sorted({*stop_ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])})
    answers: list[str] = []
    with ready_to_generate(model):
        for start in range(0, len(prompts), GENERATION_BATCH):
            answers += _answer_batch(model, tokenizer, prompts[start : start + GENERATION_BATCH], max_new_tokens, ends)
    return answers


def _answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    ends: list[int],
) -> list[str]:
    texts = [render_prompt(tokenizer, prompt) for prompt in prompts]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    encoded = {key: encoded[key].to(model.device) for key in ("input_ids", "attention_mask")}
    output = model.generate(
        **encoded,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends or None,
    )
    return [
        str(text)
        for text in tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The prompt as the model sees it before it answers."""
    text = tokenizer.apply_chat_template(
        prompt.messages, tools=prompt.tools, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


@contextmanager
def ready_to_generate(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the training mode, the cache setting and random state come back."""
    was_training, used_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        yield
    model.config.use_cache = used_cache
    model.train(was_training)


class AnswerValidationPrompts:
    """At each evaluation: sample generations, and ``eval_exact_match`` overall and by skill over the first rows."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, data: PreparedData) -> None:
        generation = config.generation
        self.num_scored = generation.exact_match_rows if config.dataset.verifiable_answers else 0
        self.prompts = data.prompts[: max(generation.num_samples, self.num_scored)]
        self.stop_ids = data.report.end_of_turn_ids
        self.num_samples = generation.num_samples
        self.max_new_tokens = generation.max_new_tokens
        self.tokenizer = tokenizer

    def __call__(self, model: PreTrainedModel, step: int) -> tuple[dict[str, float], list[Sample]]:
        """Metrics in the Trainer's spelling, and the samples to keep."""
        if not self.prompts:
            return {}, []
        answers = answer_prompts(model, self.tokenizer, self.prompts, self.max_new_tokens, self.stop_ids)
        scored = self.prompts[: self.num_scored]
        exact = [is_exact(answer, prompt) for answer, prompt in zip(answers, scored, strict=False)]
        samples = [
            Sample(step, index, prompt.messages, answers[index], prompt.reference, _nth(exact, index))
            for index, prompt in enumerate(self.prompts[: self.num_samples])
        ]
        return (exact_match_metrics(scored, exact) if scored else {}), samples


def _nth(exact: Sequence[bool], index: int) -> bool | None:
    """Of a prompt that was not scored: None."""
    return exact[index] if index < len(exact) else None


def is_exact(answer: str, prompt: Prompt) -> bool:
    return answer.strip() == (prompt.reference or "").strip()


def exact_match_metrics(prompts: Sequence[Prompt], exact: Sequence[bool]) -> dict[str, float]:
    """Share of exact answers, overall and for each skill that the data name."""
    groups: dict[str, list[bool]] = {"eval_exact_match": list(exact)}
    for prompt, right in zip(prompts, exact, strict=True):
        if prompt.skill is not None:
            groups.setdefault(f"eval_exact_match/{prompt.skill}", []).append(right)
    return {name: sum(group) / len(group) for name, group in groups.items()}
