"""What is known about a run's data before it is prepared again: the last data report, else a count of rows.

And what follows from that: its steps, and whether warmup fits into them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from sft_experiments.data.read import resolve_files
from sft_experiments.data.sources import demo_arguments, sources_of
from sft_experiments.data.store import cached_report
from sft_experiments.plan.arithmetic import plan_steps
from sft_experiments.runs.plan_file import StepPlan
from sft_experiments.schema import Config, DatasetConfig, DataSource, PackingStrategy


@dataclass(frozen=True)
class DataFacts:
    """Counts of the training split. Token counts are None until the data have been prepared once."""

    sequences: int  # rows, or packs when packed
    documents: int
    tokens: Optional[int]  # of one epoch
    supervised_share: Optional[float]
    longest: Optional[int]  # tokens of the longest sequence that a device holds
    source: str  # where the counts come from

    @property
    def is_exact(self) -> bool:
        return self.tokens is not None


def data_facts(config: Config) -> Optional[DataFacts]:
    """From the report of an earlier preparation, else from counting rows where that is cheap; None when neither works.

    Raises ``DataError`` for files that are missing.
    """
    report = cached_report(config.dataset, config.model)
    return from_report(report) if report is not None else _from_row_count(config.dataset)


def from_report(report: Mapping[str, Any]) -> DataFacts:
    train = report["splits"]["train"]
    packed = report["packing"] != PackingStrategy.none.value
    return DataFacts(
        sequences=train["sequences"],
        documents=train["rows"],
        tokens=train["tokens"],
        supervised_share=train["supervised_tokens"] / max(1, train["tokens"]),
        longest=report["max_length"] if packed else train["length_percentiles"]["100"],
        source="data report",
    )


def _from_row_count(dataset: DatasetConfig) -> Optional[DataFacts]:
    """Packing is unknown until lengths are, so a packed data set gives no count of sequences."""
    rows = count_rows(dataset)
    if rows is None or dataset.packing is not PackingStrategy.none:
        return None
    kept = rows if dataset.validation_files or dataset.validation_split else rows * (1 - dataset.validation_fraction)
    rows = rows if dataset.source.value == "demo" else round(kept)
    return DataFacts(rows, rows, None, None, None, "row count, before the data gate")


def steps_of(config: Config, facts: Optional[DataFacts]) -> Optional[StepPlan]:
    """Steps when the number of sequences is known, or when ``train.max_steps`` says it all."""
    if facts is None and config.train.max_steps is None:
        return None
    return plan_steps(
        facts.sequences if facts else 0,
        config.train.effective_batch_size,
        config.train.num_train_epochs,
        config.train.max_steps,
        config.scheduler.warmup_ratio,
        config.scheduler.warmup_steps,
    )


def count_rows(dataset: DatasetConfig) -> Optional[int]:
    """Training rows where counting is cheap (the demo; JSON Lines by line breaks), before the gate; else None."""
    count = 0
    for source in sources_of(dataset):
        if source.source is DataSource.demo:
            count += demo_arguments(dataset)["num_train"]
        elif source.source is DataSource.files:
            for file in resolve_files(source.train_files, "dataset.train_files"):
                if file.suffix.lower() not in {".jsonl", ".ndjson"}:
                    return None
                with file.open("rb") as lines:
                    count += sum(1 for line in lines if line.strip())
        else:
            return None
    return min(count, dataset.max_train_rows or count)
