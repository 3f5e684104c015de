"""The embedded demo: small tasks with one right answer each, and a tokenizer trained on them.

Everything is generated, so a fresh clone trains without network, and the same arguments give the same rows on every
machine. Skills differ in difficulty on purpose: some are solved within an epoch, some need a good learning rate.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GENERATOR_VERSION = 1  # raise it when the rows of any seed change: it is part of the data fingerprint
DEMO_DEFAULTS: dict[str, int] = {"num_train": 6000, "num_validation": 400, "seed": 0}
PAD, END = "<|pad|>", "<|end|>"
ROLE_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CAPITAL_PHRASES = (
    "what is the capital of {} ?",
    "capital of {} ?",
    "name the capital of {}",
    "tell me the capital of {}",
    "which city is the capital of {} ?",
    "{} has the capital",
    "the government of {} sits in",
    "i want to see the capital of {} , where do i go ?",
)


def _invent_capitals(count: int = 36) -> dict[str, str]:
    """Countries and capitals that exist nowhere, the same for every seed: knowledge that only the data can teach."""
    rng = random.Random("capitals")

    def word(syllables: int, ending: str) -> str:
        return "".join(rng.choice("bdfgklmnprtvz") + rng.choice("aeiou") for _ in range(syllables)) + ending

    capitals: dict[str, str] = {}
    while len(capitals) < count:
        country, city = word(2, rng.choice("lnrs") + "ia"), word(2, "")
        if country not in capitals and city not in capitals.values():
            capitals[country] = city
    return capitals


CAPITALS = _invent_capitals()


def _letters(rng: random.Random, low: int, high: int) -> list[str]:
    return [rng.choice(_LETTERS) for _ in range(rng.randint(low, high))]


def _digits(rng: random.Random, low: int, high: int) -> list[str]:
    return [str(rng.randint(0, 9)) for _ in range(rng.randint(low, high))]


def _capital(rng: random.Random) -> tuple[str, str]:
    country = rng.choice(list(CAPITALS))
    return rng.choice(_CAPITAL_PHRASES).format(country), CAPITALS[country]


def _reverse(rng: random.Random) -> tuple[str, str]:
    letters = _letters(rng, 3, 4)
    return "reverse: " + " ".join(letters), " ".join(reversed(letters))


def _sort(rng: random.Random) -> tuple[str, str]:
    digits = _digits(rng, 3, 4)
    return "sort: " + " ".join(digits), " ".join(sorted(digits))


def _largest(rng: random.Random) -> tuple[str, str]:
    digits = _digits(rng, 3, 5)
    return "largest of " + " ".join(digits), max(digits)


def _last_letter(rng: random.Random) -> tuple[str, str]:
    letters = _letters(rng, 3, 5)
    return "last letter of " + " ".join(letters), letters[-1]


def _uppercase(rng: random.Random) -> tuple[str, str]:
    letters = _letters(rng, 2, 4)
    return "uppercase: " + " ".join(letters), " ".join(letters).upper()


def _addition(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randint(0, 19), rng.randint(0, 19)
    return f"{left} + {right} =", str(left + right)


SKILLS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "capital": _capital,
    "reverse": _reverse,
    "sort": _sort,
    "largest": _largest,
    "last_letter": _last_letter,
    "uppercase": _uppercase,
    "addition": _addition,
}


def is_held_out(prompt: str) -> bool:
    """One prompt in ten belongs to validation. Decided by the prompt alone, so no seed or size can leak one."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 10 == 0


def _rows_of_skill(skill: str, wanted: int, held_out: bool, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Up to ``wanted`` rows of one side. Validation prompts are distinct; a small skill may have fewer than wanted."""
    seen: set[str] = set()
    for _ in range(200 * wanted):  # ends also for a skill with few distinct prompts
        if wanted == 0:
            return
        prompt, answer = SKILLS[skill](rng)
        if is_held_out(prompt) != held_out or (held_out and prompt in seen):
            continue
        seen.add(prompt)
        wanted -= 1
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "skill": skill}


def generate_demo_rows(split: str, num_train: int, num_validation: int, seed: int) -> list[dict[str, Any]]:
    """Rows ``{"messages", "skill"}`` of ``split`` ("train" or "validation"), skills in equal shares, shuffled."""
    held_out = split == "validation"
    rng = random.Random(f"{split} {seed}")
    per_skill = (num_validation if held_out else num_train) // len(SKILLS)
    rows = [row for skill in SKILLS for row in _rows_of_skill(skill, per_skill, held_out, rng)]
    rng.shuffle(rows)
    return rows


def build_demo_tokenizer(vocab_size: int = 640) -> "PreTrainedTokenizerFast":
    """A byte-level BPE with single digits, trained on the default demo rows; pad and end-of-turn tokens are distinct.

    Heavy imports happen here, so that the light half can read the version and defaults above.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=20,  # a rare token is a row of the embedding that never learns
        special_tokens=[PAD, *ROLE_TOKENS, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all bytes: no text of the user's is dropped
        show_progress=False,
    )
    rows = generate_demo_rows("train", **DEMO_DEFAULTS)
    bpe.train_from_iterator((message["content"] for row in rows for message in row["messages"]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE, model_max_length=128
    )
