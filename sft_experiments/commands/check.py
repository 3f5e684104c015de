"""`sft check`: the data gate, then the sanity check. Exit code 0 when nothing failed, 1 when something did."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import datasets
import transformers
from rich.table import Table
from rich.text import Text

from sft_experiments.commands import Command
from sft_experiments.config.hydra import composed
from sft_experiments.data.formats import Answer
from sft_experiments.data.prepare import print_summary
from sft_experiments.errors import ConfigError
from sft_experiments.files import write_text_atomically
from sft_experiments.launch.trial import plan_run
from sft_experiments.sanity.marked_rows import show_rows_html, show_rows_terminal
from sft_experiments.sanity.short_run import SanityReport, check_trial
from sft_experiments.sanity.verdicts import garble_of
from sft_experiments.terminal import console

COLOURS = {"pass": "green", "note": "cyan", "warn": "yellow", "fail": "red"}
FAILED = 1


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=80, help="training rows to use (default: 80)")
    parser.add_argument("--steps", type=int, default=15, help="optimizer steps (default: 15)")
    parser.add_argument(
        "--show-rows", type=int, default=0, help="print so many rows with their supervised tokens marked"
    )
    parser.add_argument("--html", help="write the report as a page")
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def _check(parsed: Namespace) -> int:
    """The data gate, then the sanity check. Exit code 0 when nothing failed, 1 when something did."""
    if not parsed.rows >= 2 or not parsed.steps >= 1:
        raise ConfigError(f"--rows {parsed.rows} --steps {parsed.steps}: needs at least 2 rows and 1 step")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with composed(parsed.settings) as composer:
        trial = plan_run(composer)
    report = check_trial(trial, parsed.rows, parsed.steps)
    if parsed.html:
        write_text_atomically(Path(parsed.html), page(report, max(3, parsed.show_rows)))
    if parsed.json:
        print(json.dumps(as_dict(report), indent=2, ensure_ascii=False))
    else:
        show(report, parsed.show_rows)
    return FAILED if report.verdict == "fail" else 0


def show(report: SanityReport, show_rows: int) -> None:
    """The report on the terminal."""
    if report.data is not None:
        print_summary(report.data.report.as_json(), console)
        if show_rows:
            show_rows_terminal(report.data.train, report.tokenizer, show_rows, console)
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for item in report.items:
        table.add_row(Text(item.verdict, style=COLOURS[item.verdict]), item.name, Text(item.found))
        if item.next_step:
            table.add_row("", "", Text(f"-> {item.next_step}", style="bold"))
    console.print(table)
    if report.trajectory:
        console.print("  loss by step  " + " ".join(f"{loss:.3f}" for loss in report.trajectory))
    for before, after in zip(report.answers_before, report.answers_after, strict=True):
        console.print(Text(f"  asked   {_last_lines(before.prompt)}", style="dim"))
        console.print(Text(f"  before  {_said(before)}"))
        console.print(Text(f"  after   {_said(after)}"))
    console.print(Text(f"check: {report.verdict}", style=f"bold {COLOURS[report.verdict]}"))


def _last_lines(prompt: str) -> str:
    return " | ".join(line for line in prompt.splitlines() if line.strip())[-100:]


def _said(answer: Answer) -> str:
    fault = garble_of(answer)
    return f"{answer.text.strip()[:100]!r}" + (f"  ({fault})" if fault else "")


def as_dict(report: SanityReport) -> dict[str, Any]:
    """The content of ``sft check --json``."""
    return {
        "verdict": report.verdict,
        "items": [asdict(item) for item in report.items],
        "trajectory": report.trajectory,
        "answers_before": [asdict(answer) for answer in report.answers_before],
        "answers_after": [asdict(answer) for answer in report.answers_after],
        "data": report.data.report.as_json() if report.data else None,
    }


def page(report: SanityReport, show_rows: int) -> str:
    """One page: the items, the answers, and rows with their supervised tokens marked."""
    items = "".join(
        f"<tr><td>{item.verdict}</td><th>{escape(item.name)}</th>"
        f"<td>{escape(item.found)}<br><b>{escape(item.next_step)}</b></td></tr>"
        for item in report.items
    )
    answers = "".join(
        f"<dt>{escape(_last_lines(before.prompt))}</dt>"
        f"<dd>before {escape(_said(before))}<br>after {escape(_said(after))}</dd>"
        for before, after in zip(report.answers_before, report.answers_after, strict=True)
    )
    body = f"<h1>Check: {report.verdict}</h1><table>{items}</table><dl>{answers}</dl>"
    if report.data is None:
        return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Check</title>{body}</html>\n'
    rows = show_rows_html(report.data.train, report.tokenizer, show_rows)
    return rows.replace("<h1>", f"{body}<h1>", 1)


COMMANDS = {
    "check": Command(
        _check,
        _add_arguments,
        usage="sft check [--rows 80] [--steps 15] [--show-rows 3] [--html FILE] [--json] [key=value ...]",
        takes_settings=True,
    )
}
