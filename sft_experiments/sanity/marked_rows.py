"""Prepared rows for the eye: the supervised tokens in colour, in the terminal and as a page of HTML."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import datasets
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from sft_experiments.data.encode import IGNORED

SUPERVISED_STYLE = "bold black on green3"


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens that are all supervised or all not."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Document:
    """One document of a row: its tokens as runs, and how many tokens there are."""

    runs: list[Run]
    num_tokens: int
    num_supervised: int


def documents_of(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """The documents of one prepared row (one, unless packed), as the loss sees them."""
    start = 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        pairs = list(zip(row["input_ids"], row["labels"], strict=True))[start : start + length]
        start += length
        runs = [
            Run(str(tokenizer.decode([token for token, _ in group], clean_up_tokenization_spaces=False)), supervised)
            for supervised, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED)
        ]
        yield Document(runs, len(pairs), sum(label != IGNORED for _, label in pairs))


def show_rows_terminal(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, count: int, console: Console
) -> None:
    """Print the first ``count`` rows; green tokens are trained on, the others are only read."""
    console.print(Text.assemble(("supervised", SUPERVISED_STYLE), " tokens are learned, the others are only read"))
    for number in range(min(count, len(rows))):
        documents = list(documents_of(rows[number], tokenizer))
        for index, document in enumerate(documents, start=1):
            text = Text()
            for run in document.runs:
                text.append(_visible_edges(run), SUPERVISED_STYLE if run.supervised else "")
            console.print(Panel(text, title=_title(number, index, len(documents), document), title_align="left"))


def show_rows_html(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """The first ``count`` rows as a complete page without scripts or links to elsewhere."""
    blocks = []
    for number in range(min(count, len(rows))):
        documents = list(documents_of(rows[number], tokenizer))
        for index, document in enumerate(documents, start=1):
            runs = "".join(
                f"<mark>{html.escape(run.text)}</mark>" if run.supervised else html.escape(run.text)
                for run in document.runs
            )
            title = html.escape(_title(number, index, len(documents), document))
            blocks.append(f"<section><h2>{title}</h2><pre>{runs}</pre></section>")
    return _PAGE.format(blocks="\n".join(blocks))


def _title(number: int, index: int, of: int, document: Document) -> str:
    part = f", document {index} of {of}" if of > 1 else ""
    return f"row {number + 1}{part}: {document.num_supervised} of {document.num_tokens} tokens supervised"


def _visible_edges(run: Run) -> str:
    """A line break at the end of a supervised run would show no colour: print a sign for it."""
    return run.text[:-1] + "⏎\n" if run.supervised and run.text.endswith("\n") else run.text


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Supervised tokens</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.3rem; }} h2 {{ font-size: .95rem; color: #555; font-weight: 600; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .8rem; border-radius: 6px; }}
mark {{ background: #9be29b; color: #000; border-radius: 2px; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #161616; color: #ddd; }} pre {{ background: #222; }} mark {{ background: #2f7d32; color: #fff; }}
}}
</style></head><body>
<h1>What the loss sees</h1>
<p><mark>Marked</mark> tokens are learned; the others are only read.</p>
{blocks}
</body></html>
"""
