"""The data report on one screen. Works on the JSON content, so it needs no torch and no tokenizer."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

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
