"""``data_report.json``: what the gate saw and what training gets. Readable without torch or transformers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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
