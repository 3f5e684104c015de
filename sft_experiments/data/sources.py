"""Sources to conversations: files, the Hub, the demo, or a mixture; and the split that validation is taken from.

The demo is small tasks with one right answer each, and a tokenizer trained on them. Everything is generated, so a fresh
clone trains without network, and the same arguments give the same rows on every machine. Skills differ in difficulty on
purpose: some are solved within an epoch, some need a good learning rate.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Optional

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.data.formats import Conversation, Origin, RowFault, read_conversation, refuse_missing_columns
from sft_experiments.data.gate import Gate
from sft_experiments.data.read import RawRow, read_rows, resolve_files
from sft_experiments.errors import ConfigError, DataError
from sft_experiments.models.hub import hub_answers, hub_commit
from sft_experiments.schema import DatasetConfig, DataSource, SourceConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast  # slow: transformers, seconds; `sft plan` needs none

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
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # slow: 0.1 s, only for the demo
    from transformers import PreTrainedTokenizerFast  # slow: transformers, seconds; `sft plan` needs none

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


SPLITS = ("train", "validation", "test")
Tick = Callable[[int], None]  # called with the number of rows read since the last call


@dataclass
class Rows:
    """The conversations of each split and how many rows were read for it."""

    conversations: dict[str, list[Conversation]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    num_read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))


def load_rows(dataset: DatasetConfig, gate: Gate, split_seed: int, tick: Tick = lambda count: None) -> Rows:
    """Read every split. Rows that cannot be read or do not have the format's shape are counted by the gate.

    Raises ``DataError`` for files that cannot be read at all and when train has no rows.
    """
    rows = Rows()
    for source in sources_of(dataset):
        for split in SPLITS:
            _load_split(source, dataset, split, gate, rows, tick)
    if not has_validation(dataset):
        _hold_out(rows, dataset.validation_fraction, split_seed)
    if not rows.num_read["train"]:
        raise DataError(f"dataset.train_files: no training rows for dataset {dataset.name}")
    _limit(rows, "train", dataset.max_train_rows, split_seed)
    _limit(rows, "validation", dataset.max_validation_rows, split_seed)
    return rows


def sources_of(dataset: DatasetConfig) -> list[SourceConfig]:
    """The dataset itself, or the parts of a mixture in the order of their names."""
    if dataset.source is not DataSource.mixture:
        return [dataset]
    if not dataset.mixture:
        raise ConfigError("dataset.mixture is empty; name its sources, see conf/dataset/mixture.yaml")
    return [_part(dataset, name) for name in sorted(dataset.mixture)]


def _part(dataset: DatasetConfig, name: str) -> SourceConfig:
    """A part of a mixture: files unless it says otherwise, every other key as the data set has it."""
    inherited = {field.name: getattr(dataset, field.name) for field in fields(SourceConfig)}
    inherited |= {"source": DataSource.files, "train_files": [], "validation_files": [], "test_files": []}
    try:
        schema = OmegaConf.structured(SourceConfig)
        part = OmegaConf.to_object(OmegaConf.merge(schema, inherited, dataset.mixture[name]))
    except OmegaConfBaseException as error:
        raise ConfigError(f"dataset.mixture.{name}: {str(error).splitlines()[0]}") from error
    assert isinstance(part, SourceConfig)
    return part


def has_validation(dataset: DatasetConfig) -> bool:
    """Whether any source brings its own validation rows."""
    return any(
        source.source is DataSource.demo or source.validation_files or source.validation_split
        for source in sources_of(dataset)
    )


def _load_split(source: SourceConfig, dataset: DatasetConfig, split: str, gate: Gate, rows: Rows, tick: Tick) -> None:
    loaded: list[Conversation] = []
    columns: dict[str, None] = {}  # of rows that could not be read, in the order of the file
    for origin, raw in _raw_rows(source, dataset, split):
        rows.num_read[split] += 1
        tick(1)
        try:
            if isinstance(raw, RowFault):
                raise raw
            conversation = read_conversation(raw, source, origin)
            conversation.weight = source.weight
            loaded.append(conversation)
        except RowFault as fault:
            gate.reject(fault.rule, split, origin, fault.what)
            columns |= {} if isinstance(raw, RowFault) else dict.fromkeys(raw)
    if columns and not loaded:
        key = "dataset.mixture.<part>" if dataset.source is DataSource.mixture else "dataset"
        refuse_missing_columns(source, split, columns, key)
    rows.conversations[split].extend(loaded)


def _raw_rows(source: SourceConfig, dataset: DatasetConfig, split: str) -> Iterator[RawRow]:
    if source.source is DataSource.demo:
        yield from _demo_rows(dataset, split)
    elif source.source is DataSource.hub:
        yield from read_hub_rows(source, split)
    elif source.source is DataSource.files:
        for file in resolve_files(getattr(source, f"{split}_files"), f"dataset.{split}_files"):
            yield from read_rows(file)
    else:
        raise ConfigError("dataset.mixture: a mixture cannot hold another mixture")


def _demo_rows(dataset: DatasetConfig, split: str) -> Iterator[RawRow]:
    if split != "test":
        for number, row in enumerate(generate_demo_rows(split, **demo_arguments(dataset)), start=1):
            yield Origin(f"demo {split}", number), row


def demo_arguments(dataset: DatasetConfig) -> dict[str, int]:
    """The generator's arguments. Raises ``ConfigError`` naming an unknown one."""
    unknown = sorted(set(dataset.demo) - set(DEMO_DEFAULTS))
    if unknown:
        raise ConfigError(f"dataset.demo.{unknown[0]} is not an argument; allowed: {', '.join(DEMO_DEFAULTS)}")
    return DEMO_DEFAULTS | {key: int(value) for key, value in dataset.demo.items()}


def _hold_out(rows: Rows, fraction: float, seed: int) -> None:
    """Move about ``fraction`` of the training rows to validation, chosen by their prompt's content.

    A row's side depends on nothing else, so adding rows never moves old ones, and a prompt is never on both sides.
    """
    train: list[Conversation] = []
    validation: list[Conversation] = []
    for row in rows.conversations["train"]:
        (validation if _is_held_out(row, fraction, seed) else train).append(row)
    if not validation and fraction > 0 and len({row.prompt_digest() for row in train}) > 1:
        chosen = min(row.prompt_digest() for row in train)  # few rows: one prompt at least
        validation = [row for row in train if row.prompt_digest() == chosen]
        train = [row for row in train if row.prompt_digest() != chosen]
    rows.conversations["train"] = train
    rows.conversations["validation"] += validation
    rows.num_read["validation"] += len(validation)
    rows.num_read["train"] -= len(validation)


def _is_held_out(row: Conversation, fraction: float, seed: int) -> bool:
    digest = int.from_bytes(row.prompt_digest()[:8], "big")
    return random.Random(digest ^ seed).random() < fraction


def _limit(rows: Rows, split: str, max_rows: Optional[int], seed: int) -> None:
    """Keep ``max_rows`` rows of a split, a seeded choice in the original order."""
    conversations: list[Any] = rows.conversations[split]
    if max_rows is not None and len(conversations) > max_rows:
        kept = sorted(random.Random(seed).sample(range(len(conversations)), max_rows))
        rows.conversations[split] = [conversations[index] for index in kept]


def apply_weights(conversations: list[Conversation], seed: int) -> list[Conversation]:
    """Rows of a mixture taken ``weight`` times: 2 takes each row twice, 0.5 a seeded half of them."""
    if all(row.weight == 1 for row in conversations):
        return conversations
    rng = random.Random(seed)
    return [row for row in conversations for _ in range(int(row.weight) + (rng.random() < row.weight % 1))]


def pin_revisions(dataset: DatasetConfig) -> DatasetConfig:
    """A copy in which Hub sources name the commit that their branch or tag is now, where the Hub can be asked."""
    if dataset.source is not DataSource.mixture:
        return replace(dataset, hub_revision=_pinned_revision(dataset))
    parts = dict(zip(sorted(dataset.mixture), sources_of(dataset), strict=True))
    pinned = {name: {**dataset.mixture[name], "hub_revision": _pinned_revision(part)} for name, part in parts.items()}
    return replace(dataset, mixture=pinned)


def _pinned_revision(source: SourceConfig) -> Optional[str]:
    if source.source is not DataSource.hub or not source.hub_id:
        return source.hub_revision
    return hub_commit("dataset", source.hub_id, source.hub_revision, DataError) or source.hub_revision


def read_hub_rows(source: SourceConfig, split: str) -> Iterator[tuple[Origin, dict[str, Any]]]:
    """Rows of one split of a Hub data set, from the local copy without a network; ``DataError`` when there is none."""
    split_name = getattr(source, f"{split}_split")
    if not split_name:
        return
    if not source.hub_id:
        raise ConfigError("dataset.hub_id is not set; give owner/name")
    rows = _load_hub_split(source, split_name, reachable=hub_answers())
    where = f"{source.hub_id}@{(source.hub_revision or 'local copy')[:12]}/{split_name}"
    for number, row in enumerate(rows, start=1):
        yield Origin(where, number), row


def _load_hub_split(source: SourceConfig, split_name: str, reachable: bool) -> Any:
    import datasets  # slow: datasets, 2 s, only for the Hub

    try:
        return datasets.load_dataset(
            str(source.hub_id),
            source.hub_config,
            split=split_name,
            revision=source.hub_revision,
            download_config=datasets.DownloadConfig(local_files_only=not reachable),
        )
    except (OSError, ValueError) as error:  # not cached, no such subset or split: datasets says which
        why = "it cannot be loaded" if reachable else "the Hub cannot be reached and there is no local copy"
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"dataset.hub_id={source.hub_id}, split {split_name!r}: {why} ({first})") from error
