"""Prepared data for the trainer: from the cache, or built once and shared by every trial of a sweep.

Building goes in the order read, gate, mask, fit, pack. What the gate saw and what training gets stands beside the data
in ``data_report.json``, and on one screen.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

import datasets
import numpy as np
import pyarrow as pa
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.encode import IGNORED, Encoded, Encoder, build_table, fit_rows, read_table, write_table
from sft_experiments.data.formats import Conversation, Prompt, RowFault
from sft_experiments.data.gate import Gate, check_conversation, control_token_pattern
from sft_experiments.data.proof import MaskProof
from sft_experiments.data.sources import SPLITS, Rows, apply_weights, load_rows, pin_revisions
from sft_experiments.data.store import (
    PREPARATION_VERSION,
    CacheEntry,
    dataset_fingerprint,
    default_cache_dir,
    get_or_build,
    preparation_settings,
    remember_plan,
)
from sft_experiments.errors import DataError
from sft_experiments.files import write_json_atomically
from sft_experiments.schema import DatasetConfig, ModelConfig, PackingStrategy, TrainOn
from sft_experiments.terminal import Progress, Tick
from sft_experiments.values import hash_of

SCHEMA_VERSION = 1


@dataclass
class SplitReport:
    """Counts of one split. Lengths are tokens per document, before packing."""

    rows_read: int
    rows: int  # documents that are trained or evaluated on
    dropped: dict[str, int]  # rule -> rows left out
    tokens: int
    supervised_tokens: int
    length_percentiles: dict[str, int]  # "50", "90", "95", "99", "100"
    full_length_percentiles: dict[str, int]  # the same before max_length was applied
    rows_with_end_token: int  # rows whose last answer keeps its end token
    sequences: int  # rows of the training set: packs when packed, else documents
    documents_per_sequence: float
    answer_bytes: int  # UTF-8 bytes of the supervised answers: what losses of different tokenizers are divided by
    fill: float  # share of sequences * longest sequence that is not padding (packed: of max_length)

    @property
    def supervised_share(self) -> float:
        return self.supervised_tokens / self.tokens if self.tokens else 0.0


@dataclass
class DataReport:
    """The whole report. ``as_json`` is the content of data_report.json."""

    dataset: str
    max_length: int
    packing: str
    train_on: str
    overlong: str
    mask_methods: dict[str, int] = field(default_factory=dict)  # how spans were found -> rows
    rows_proven: int = 0  # rows whose mask was checked by decoding
    end_of_turn_ids: list[int] = field(default_factory=list)
    splits: dict[str, SplitReport] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)  # see gate.Finding
    seconds: float = 0.0  # of the preparation; a cached one took this long when it was made
    cached: bool = False  # read from the cache in this run
    key: str = ""  # of the cache entry
    schema_version: int = SCHEMA_VERSION

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def report_from_json(content: Mapping[str, Any]) -> DataReport:
    """The report of a cache entry or run folder."""
    splits = {name: SplitReport(**split) for name, split in content["splits"].items()}
    return DataReport(**{**content, "splits": splits})


_COLOUR = {"error": "red", "drop": "yellow", "warn": "cyan"}


def print_summary(report: Mapping[str, Any], console: Console) -> None:
    """Rows, tokens, lengths, packing and findings of one data_report.json."""
    console.print(summary_of(report))


def summary_of(report: Mapping[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [_splits(report)]
    if report["findings"]:
        parts.append(_findings(report))
    parts.append(Text(_proof_line(report), style="dim"))
    return Group(*parts)


def _splits(report: Mapping[str, Any]) -> Table:
    table = Table(title=f"data: {report['dataset']}", title_justify="left")
    table.add_column("split")
    for name in ("rows", "dropped", "tokens", "supervised", "with end token", "tokens per row", "sequences", "fill"):
        table.add_column(name, justify="right")
    for name, split in report["splits"].items():
        ranks = split["length_percentiles"]
        table.add_row(
            name,
            f"{split['rows']:,}",
            f"{sum(split['dropped'].values()):,}",
            f"{split['tokens']:,}",
            f"{split['supervised_tokens'] / max(1, split['tokens']):.0%}",
            f"{split['rows_with_end_token'] / max(1, split['rows']):.1%}",
            f"{ranks['50']} half, {ranks['95']} 95%, {ranks['100']} max",
            f"{split['sequences']:,}",
            f"{split['fill']:.0%}",
        )
    return table


def _findings(report: Mapping[str, Any]) -> Table:
    table = Table(title="findings", title_justify="left")
    for name in ("split", "rule", "rows", "done", "first"):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for finding in report["findings"]:
        colour = _COLOUR.get(finding["policy"], "")
        rows = f"{finding['count']:,}"
        first = finding["examples"][0] if finding["examples"] else ""
        done = {"drop": "left out", "warn": "kept", "error": "refused"}[finding["policy"]]
        table.add_row(finding["split"], finding["rule"], rows, Text(done, style=colour), first)
    return table


def _proof_line(report: Mapping[str, Any]) -> str:
    methods = ", ".join(f"{name} {count:,}" for name, count in report["mask_methods"].items())
    source = "from the cache" if report["cached"] else f"prepared in {report['seconds']:.1f} s"
    proof = f"masks proven on every row, decoded on {report['rows_proven']:,} (found by {methods})"
    if set(report["mask_methods"]) <= {"all"}:
        proof = "every token is supervised"
    settings = f"max_length {report['max_length']}, packing {report['packing']}, train_on {report['train_on']}"
    return f"{proof}; {settings}; {source}"


BATCH_SIZE = 50  # rows rendered and tokenized at once; more is no faster, and encodings are large while they live
MAX_PROMPTS = 2000  # validation prompts kept for generations and exact match
MAX_DECODED = 2000  # rows per split whose mask is also proven by decoding tokens; text and end tokens: every row


def build_prepared(
    folder: Path, dataset: DatasetConfig, tokenizer: PreTrainedTokenizerBase, split_seed: int, key: str, progress: bool
) -> None:
    """Fill a cache folder with tables, prompts and the report. Raises ``DataError`` with all that the gate refuses."""
    started = time.monotonic()
    gate = Gate(dataset.rules)
    report = DataReport(
        dataset=dataset.name,
        max_length=dataset.max_length,
        packing=dataset.packing.value,
        train_on=dataset.train_on.value,
        overlong=dataset.overlong.value,
        key=key,
    )
    prompts: list[Prompt] = []
    with Progress(progress) as bar:
        rows = load_rows(dataset, gate, split_seed, bar.task("reading rows"))
        gate_rows(rows, gate, control_token_pattern(control_tokens(tokenizer)), split_seed)
        encoder = Encoder(tokenizer, dataset.train_on)
        proof = MaskProof(tokenizer, dataset.train_on)
        for split, conversations in rows.conversations.items():
            if not rows.num_read[split]:
                continue
            tick = bar.task(f"masking {split}", len(conversations))
            encoded = list(mask_rows(conversations, split, encoder, proof, gate, tick))
            fitted = fit_rows(encoded, split, dataset.max_length, dataset.overlong, gate)
            _refuse(gate, split, encoded, len(fitted), dataset)
            packing = dataset.packing if split == "train" else PackingStrategy.none
            table = build_table(fitted, packing, dataset.max_length)
            write_table(table, folder / f"{split}.arrow")
            report.splits[split] = _split_report(
                table, encoded, fitted, rows.num_read[split], dataset.max_length, dataset.train_on
            )
            report.splits[split].dropped = gate.dropped_by_rule(split)
            _count_methods(report, fitted)
            if split == "validation":
                prompts = validation_prompts(fitted, tokenizer)
    report.rows_proven, report.end_of_turn_ids = proof.num_decoded, sorted(proof.end_of_turn_ids)
    report.findings = [finding.as_json() for finding in gate.findings()]
    report.seconds = round(time.monotonic() - started, 3)
    write_json_atomically(folder / "prompts.json", [asdict(prompt) for prompt in prompts])
    write_json_atomically(folder / "report.json", report.as_json())


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that must not come out of plain text. Added words such as <think> are ordinary text and may."""
    special = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*special, *map(str, tokenizer.all_special_tokens)})


def gate_rows(rows: Rows, gate: Gate, control: Any, seed: int) -> None:
    """Apply every rule that needs no tokens; what stays replaces ``rows.conversations``. Nothing is refused yet."""
    train_prompts: set[bytes] = set()
    for split in SPLITS:
        kept: list[Conversation] = []
        seen: set[tuple[bytes, bytes]] = set()
        for row in rows.conversations[split]:
            faults = [*check_conversation(row, control), *_repetition(row, split, seen, train_prompts)]
            if _stays(gate, row, split, faults):
                kept.append(row)
        rows.conversations[split] = kept
        if split == "train":
            train_prompts = {row.prompt_digest() for row in kept}
            rows.conversations[split] = apply_weights(kept, seed)


def _repetition(
    row: Conversation, split: str, seen: set[tuple[bytes, bytes]], train_prompts: set[bytes]
) -> Iterator[RowFault]:
    digest = row.digest()
    if digest in seen:
        yield RowFault("duplicate_row", "seen before")
    seen.add(digest)
    if split != "train" and row.prompt_digest() in train_prompts:
        yield RowFault("overlapping_prompt", "its prompt is in train")


def _stays(gate: Gate, row: Conversation, split: str, faults: Iterable[RowFault]) -> bool:
    """Count the faults up to the first that removes the row, so that a dropped row is counted as dropped once."""
    return all(gate.report(fault.rule, split, row.origin, fault.what) for fault in faults)


def mask_rows(
    conversations: list[Conversation], split: str, encoder: Encoder, proof: MaskProof, gate: Gate, tick: Tick
) -> Iterator[Encoded]:
    """Tokens and labels of the rows, every mask proven; faulty rows are counted and left out."""
    every = max(1, len(conversations) // MAX_DECODED)
    for start in range(0, len(conversations), BATCH_SIZE):
        batch = conversations[start : start + BATCH_SIZE]
        for number, (conversation, row) in enumerate(zip(batch, encoder.encode(batch), strict=True), start=start):
            if isinstance(row, RowFault):
                gate.reject(row.rule, split, conversation.origin, row.what)
            elif what := proof.fault(row, decode=number % every == 0):
                gate.reject("unproven_mask", split, conversation.origin, what)
            elif number % every or _keeps_text(row, proof, gate, split):
                yield row
        tick(len(batch))


def _keeps_text(row: Encoded, proof: MaskProof, gate: Gate, split: str) -> bool:
    what = proof.lost_text(row)
    return what is None or gate.report("lossy_tokens", split, row.conversation.origin, what)


def _refuse(gate: Gate, split: str, encoded: list[Encoded], num_kept: int, dataset: DatasetConfig) -> None:
    gate.refuse_errors()
    gate.refuse_drops(split, num_kept, dataset.max_drop_fraction, _lengths_advice(encoded, dataset.max_length))
    if not num_kept and split == "train":
        raise DataError("train: no row is left to train on")
    if not num_kept:
        raise DataError(f"{split}: no row is left; give dataset.{split}_files other rows, or none")


def _lengths_advice(rows: list[Encoded], max_length: int) -> str:
    """Which max_length would do; empty when every row fits."""
    lengths = [len(row.input_ids) for row in rows]
    fitting = sum(length <= max_length for length in lengths)
    if fitting == len(lengths):
        return ""
    ranks = _percentiles(lengths)
    return (
        f"\n{fitting} of {len(lengths)} rows fit into dataset.max_length={max_length} whole; "
        f"half have up to {ranks['50']} tokens, 95% up to {ranks['95']}, all up to {ranks['100']}"
    )


def _split_report(
    table: pa.Table,
    encoded: list[Encoded],
    fitted: list[Encoded],
    rows_read: int,
    capacity: int,
    train_on: TrainOn,
) -> SplitReport:
    """``capacity``: tokens that a sequence takes up, the longest row where nothing is packed."""
    lengths = [len(row.input_ids) for row in fitted]
    packed = "seq_lengths" in table.column_names
    tokens = sum(lengths)
    return SplitReport(
        rows_read=rows_read,
        rows=len(fitted),
        dropped={},
        tokens=tokens,
        supervised_tokens=sum(row.num_supervised() for row in fitted),
        length_percentiles=_percentiles(lengths),
        full_length_percentiles=_percentiles([len(row.input_ids) for row in encoded]),
        rows_with_end_token=sum(not row.is_cut for row in fitted),
        sequences=len(table),
        documents_per_sequence=round(len(fitted) / len(table), 3),
        answer_bytes=sum(answer_bytes(row.conversation, train_on) for row in fitted),
        fill=round(tokens / (len(table) * (capacity if packed else max(lengths))), 4),
    )


def answer_bytes(conversation: Conversation, train_on: TrainOn) -> int:
    """UTF-8 bytes of the text that is supervised, control tokens of the template left out; plain text counts whole."""
    if conversation.text is not None:
        return len(conversation.text.encode(errors="replace"))
    turns = conversation.assistant_turns()
    turns = turns[-1:] if train_on is TrainOn.last_assistant else turns
    messages = conversation.messages if train_on is TrainOn.all else [conversation.messages[turn] for turn in turns]
    return sum(len(str(message.get("content") or "").encode(errors="replace")) for message in messages)


def _percentiles(lengths: list[int]) -> dict[str, int]:
    ranks = (50, 90, 95, 99, 100)
    values = np.percentile(lengths, ranks, method="higher") if lengths else [0] * len(ranks)
    return {str(rank): int(value) for rank, value in zip(ranks, values, strict=True)}


def _count_methods(report: DataReport, rows: list[Encoded]) -> None:
    for row in rows:
        report.mask_methods[row.method] = report.mask_methods.get(row.method, 0) + 1


def validation_prompts(rows: list[Encoded], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """What is asked and answered at evaluation, in file order, at most ``MAX_PROMPTS``."""
    last_pieces = {id(row.conversation): row for row in rows}  # a row may be in several
    prompts = []
    for piece in list(last_pieces.values())[:MAX_PROMPTS]:
        row = piece.conversation
        if row.text is None and row.assistant_turns():
            at = row.prompt_length()
            answer, supervised = row.messages[at]["content"], _last_supervised(piece, tokenizer)
            prompts.append(Prompt(row.messages[:at], answer, row.skill, row.tools, supervised))
    return prompts


def _last_supervised(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> Optional[str]:
    """The text of the last run of supervised tokens, as an answer is decoded; None when it is cut."""
    places = np.flatnonzero(row.labels != IGNORED)
    if row.is_cut or not len(places):
        return None
    gaps = np.flatnonzero(np.diff(places) > 1)
    first = places[gaps[-1] + 1] if len(gaps) else places[0]
    return str(tokenizer.decode(row.input_ids[first : places[-1] + 1].tolist(), skip_special_tokens=True))


@dataclass(frozen=True)
class PreparedData:
    """What the trainer needs. Data sets are memory-mapped and hold int32 lists."""

    train: datasets.Dataset  # input_ids, labels (-100: not supervised), seq_lengths when packed
    validation: Optional[datasets.Dataset]  # never packed: one document per row
    test: Optional[datasets.Dataset]
    prompts: list[Prompt]  # validation prompts with their reference answers
    report: DataReport
    fingerprints: dict[str, str]  # split -> hash of the raw data; "tokenizer"; "prepared" (the cache key)


def prepare_data(
    dataset: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_dir: Optional[Path] = None,
    model: Optional[ModelConfig] = None,
    split_seed: int = 0,
    show_progress: bool = True,
) -> PreparedData:
    """Prepared data from the cache, or made once under a lock. ``model`` lets later plans find the report.

    Raises ``DataError`` with every reason at once when the gate refuses, ``ModelError`` when the tokenizer cannot
    render or mask, ``ConfigError`` for keys that do not fit together.
    """
    cache_dir = cache_dir or default_cache_dir()
    configured, dataset = dataset, pin_revisions(dataset)
    fingerprints = dataset_fingerprint(dataset)
    fingerprints["tokenizer"] = tokenizer_fingerprint(tokenizer)
    libraries = {name: version(name) for name in ("transformers", "tokenizers", "trl")}  # templates and twins
    settings = preparation_settings(dataset)
    key = hash_of([PREPARATION_VERSION, libraries, fingerprints, settings, split_seed])[:32]

    def build(folder: Path) -> None:
        build_prepared(folder, dataset, tokenizer, split_seed, key, show_progress)

    entry, was_cached = get_or_build(cache_dir, key, build)
    if model is not None:
        remember_plan(configured, model, cache_dir, key)
    return _open_entry(entry, was_cached, fingerprints | {"prepared": key})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides ids and text: vocabulary, merges, normaliser, special tokens, chat template."""
    fast = tokenizer.is_fast
    backend: Any = tokenizer.backend_tokenizer.to_str() if fast else sorted(tokenizer.get_vocab().items())
    return hash_of([backend, tokenizer.special_tokens_map, tokenizer.chat_template])


def _open_entry(entry: CacheEntry, was_cached: bool, fingerprints: dict[str, str]) -> PreparedData:
    tables = {split: read_table(entry.table(split)) for split in SPLITS}
    train = tables["train"]
    if train is None:
        raise DataError(f"{entry.path} is damaged: train.arrow is missing; delete the folder (sft cache --clear)")
    return PreparedData(
        train=train,
        validation=tables["validation"],
        test=tables["test"],
        prompts=[Prompt(**prompt) for prompt in json.loads(entry.prompts.read_text(encoding="utf-8"))],
        report=replace(report_from_json(entry.read_report()), cached=was_cached),
        fingerprints=fingerprints,
    )
