"""The subcommands ``compare``, ``report`` and ``best``: their arguments, and what they call."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from sft_experiments.commands import Command
from sft_experiments.report.on_terminal import TEXT_FORMATS, compare, print_difference
from sft_experiments.report.publish import write_report
from sft_experiments.results.compare import best_run, load_comparisons
from sft_experiments.results.recipes import again_command, export_command, reproduce_command


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Rank runs by their objective; show what differs, what is within noise, and what to do next."
    _add_directories(parser, many="*")
    parser.add_argument("--sort", metavar="NAME", help="a column, setting or metric; -NAME sorts downwards (--sort=-n)")
    parser.add_argument("--columns", metavar="NAMES", default="", help="comma-separated: columns, settings or metrics")
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        action="append",
        default=[],
        help="e.g. 'learning_rate>=1e-4', status=completed, folder~warm (contains); several must all hold",
    )
    parser.add_argument("--format", choices=["table", *TEXT_FORMATS], default="table")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="what differs between two runs, by path or name")
    parser.add_argument("--top", type=_count, metavar="N", help="the best N rows of each table")
    parser.add_argument("--no-advice", action="store_true", help="the table only")


def _run_compare(args: argparse.Namespace) -> int:
    console = Console()
    if args.diff:
        first, second = args.diff
        print_difference(args.directories, first, second, console)
        return 0
    columns = [name.strip() for name in args.columns.split(",") if name.strip()]
    directories = args.directories or [Path("outputs")]
    compare(directories, console, args.sort, columns, args.where, args.format, not args.no_advice, args.top)
    return 0


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write one self-contained HTML page about all runs below some folders."
    _add_directories(parser, many="+")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first folder")


def _run_report(args: argparse.Namespace) -> int:
    print(write_report(args.directories, args.output))
    return 0


def _add_best_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "The best run: its folder and model, and the commands that export it and train it again."
    _add_directories(parser, many="+")
    parser.add_argument("--path", action="store_true", help="print the folder only, for use in scripts")


def _run_best(args: argparse.Namespace) -> int:
    run = best_run(args.directories)
    print(run.folder.path)
    if len(load_comparisons(args.directories)) > 1:
        print("note: some of these runs were measured on other validation rows: see sft compare", file=sys.stderr)
    if not args.path:
        print(f"{run.record.objective_metric}: {run.record.objective:.4f}")
        if run.folder.has_weights:
            print(f"model: {run.folder.model}")
            print(f"export: {export_command(run)}")
        else:
            print("model: its weights were not kept (sweep.keep_models)")
        print(f"reproduce: {reproduce_command(run)}")
        print(f"train it again under another name: {again_command(run)}")
    return 0


def _add_directories(parser: argparse.ArgumentParser, many: str) -> None:
    parser.add_argument("directories", metavar="DIR", type=Path, nargs=many, help="a sweep's folder or a run's folder")


COMMANDS = {
    "compare": Command(_run_compare, _add_compare_arguments),
    "report": Command(_run_report, _add_report_arguments),
    "best": Command(_run_best, _add_best_arguments),
}
