"""A model's answers to prompts: samples to read, and exact match where answers are verifiable."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sft_experiments.data.formats import Answer, Prompt
from sft_experiments.data.prepare import PreparedData
from sft_experiments.runs.metrics import Sample
from sft_experiments.runs.plan_file import GENERATION_BATCH
from sft_experiments.runs.record import Phase, during
from sft_experiments.schema import Config
from sft_experiments.training.out_of_memory import is_out_of_memory


@dataclass
class Together:
    """How many prompts are answered together: half as many from then on where they do not fit into memory."""

    size: int = GENERATION_BATCH
    in_step: bool = False  # with other ranks that hold parts of the model: none can go back alone


@during(Phase.generation)
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    stop_ids: Iterable[int] = (),
    temperature: float = 0.0,
    streamer: Any = None,
    together: Optional[Together] = None,
) -> list[Answer]:
    """One answer per prompt, greedy at temperature 0. The model is left as it was.

    Prompts are padded on the left in batches. An answer ends at the tokenizer's end token or at one of ``stop_ids``.
    A ``streamer`` (transformers) sees the tokens as they come; it takes a single prompt. Raises what the model raises;
    of running out of memory only what a single prompt does, or a batch of ranks in step.
    """
    together = together or Together()
    ends = {*stop_ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])}
    settings = {
        "max_new_tokens": max_new_tokens,
        "use_cache": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": sorted(ends) or None,
        "streamer": streamer,
        **({"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}),
    }
    answers: list[Answer] = []
    with ready_to_generate(model):
        while left := prompts[len(answers) :]:
            texts = [render_prompt(tokenizer, prompt) for prompt in left[: together.size]]
            new = _fitting(model, tokenizer, texts, settings, together.in_step)
            if new is None:  # the error is gone, and with it the last reference to what did not fit
                clear_device_cache(garbage_collection=True)
                together.size = len(texts) // 2
            else:
                answers += [_answer(tokenizer, text, ids, ends) for text, ids in zip(texts, new, strict=True)]
    return answers


def _fitting(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], settings: Any, in_step: bool
) -> Optional[list[list[int]]]:
    """The tokens that follow each text; None where memory ran out, and fewer texts at a time may fit."""
    try:
        encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        encoded = {key: encoded[key].to(model.device) for key in ("input_ids", "attention_mask")}
        output = model.generate(**encoded, **settings)
        new: list[list[int]] = output[:, encoded["input_ids"].shape[1] :].tolist()
    except Exception as error:  # memory runs out in many classes; anything else goes on
        if in_step or len(texts) == 1 or not is_out_of_memory(error):
            raise
        return None
    return new


def _answer(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], ends: set[int]) -> Answer:
    """What was said up to the first end token; behind it a batch is only padding."""
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    said = str(tokenizer.decode(ids[:length], skip_special_tokens=True))
    return Answer(prompt, said, ids[:length], ended=length < len(ids))


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The prompt as the model sees it before it answers."""
    text = tokenizer.apply_chat_template(
        prompt.messages, tools=prompt.tools, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


@contextmanager
def ready_to_generate(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients, and decoding by our settings alone; all of it is undone.

    A model's own generation config would be merged in: a repetition penalty changes greedy answers too.
    """
    was_training, used_cache = model.training, model.config.use_cache
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]  # of adapters: both
    own = [holder.generation_config for holder in holders]
    model.eval()
    model.config.use_cache = True
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        for holder, config in zip(holders, own, strict=True):
            holder.generation_config = config
        model.config.use_cache = used_cache
        model.train(was_training)


def answer_validation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    data: PreparedData,
    step: int,
    together: Optional[Together] = None,
) -> tuple[dict[str, float], list[Sample]]:
    """Exact match over the first validation rows, overall and by skill, in the Trainer's spelling; samples to keep."""
    generation = config.generation
    num_scored = generation.exact_match_rows if config.dataset.verifiable_answers else 0
    prompts = data.prompts[: max(generation.num_samples, num_scored)]
    if not prompts:
        return {}, []
    ends, length = data.report.end_of_turn_ids, generation.max_new_tokens
    answers = answer(model, tokenizer, prompts, length, ends, together=together)
    scored = prompts[:num_scored]
    exact = [is_exact(one.text, prompt) for one, prompt in zip(answers, scored, strict=False)]
    samples = [
        Sample(step, index, prompt.messages, answers[index].text, prompt.reference, _nth(exact, index))
        for index, prompt in enumerate(prompts[: generation.num_samples])
    ]
    return (exact_match_metrics(scored, exact) if scored else {}), samples


def _nth(exact: Sequence[bool], index: int) -> bool | None:
    """Of a prompt that was not scored: None."""
    return exact[index] if index < len(exact) else None


def is_exact(answer: str, prompt: Prompt) -> bool:
    """Whether it is the reference, or what the loss has taught: templates put more around it (an empty thought)."""
    right = {(text or "").strip() for text in (prompt.reference, prompt.supervised or prompt.reference)}
    return answer.strip() in right


def exact_match_metrics(prompts: Sequence[Prompt], exact: Sequence[bool]) -> dict[str, float]:
    """Share of exact answers, overall and for each skill that the data name."""
    groups: dict[str, list[bool]] = {"eval_exact_match": list(exact)}
    for prompt, right in zip(prompts, exact, strict=True):
        if prompt.skill is not None:
            groups.setdefault(f"eval_exact_match/{prompt.skill}", []).append(right)
    return {name: sum(group) / len(group) for name, group in groups.items()}
