"""``data_report.json``: what the gate saw and what training gets, and the same on one screen. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

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
