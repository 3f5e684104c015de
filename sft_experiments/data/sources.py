"""Sources to conversations: files, the Hub, the demo, or a mixture; and the split that validation is taken from."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Optional

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.data.demo import DEMO_DEFAULTS, generate_demo_rows
from sft_experiments.data.formats import Conversation, Origin, RowFault, read_conversation, refuse_missing_columns
from sft_experiments.data.gate import Gate
from sft_experiments.data.read import RawRow, read_rows, resolve_files
from sft_experiments.errors import ConfigError, DataError
from sft_experiments.models.hub import hub_answers, hub_commit
from sft_experiments.schema import DatasetConfig, DataSource, SourceConfig

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
    import datasets

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
