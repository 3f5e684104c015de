"""`sft cache`: what prepared data is kept on disk, and deleting it."""

from argparse import ArgumentParser, Namespace
from datetime import datetime

from rich.console import Console
from rich.table import Table

from sft_experiments.commands import Command
from sft_experiments.data.store import clear_cache, default_cache_dir, list_entries, prepared_folder

MIB = 1024 * 1024


def _add_cache_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--clear", action="store_true", help="delete all prepared data; it is made again when needed")


def _run_cache(parsed: Namespace) -> int:
    """List or clear ``$SFT_CACHE_DIR`` (default ~/.cache/sft_experiments)."""
    if parsed.clear:
        count, num_bytes = clear_cache()
        print(f"deleted {count} prepared data sets, {num_bytes / MIB:.1f} MiB")
        return 0
    entries = list_entries()
    table = Table(title=f"prepared data in {prepared_folder(default_cache_dir())}", title_justify="left")
    for name in ("data set", "train rows", "max_length", "packing", "MiB", "last used", "key"):
        table.add_column(name)
    for entry in entries:
        report = entry.read_report()
        used = datetime.fromtimestamp(entry.last_used()).strftime("%Y-%m-%d %H:%M")
        size = f"{entry.num_bytes() / MIB:.1f}"
        rows, length = f"{report['splits']['train']['rows']:,}", str(report["max_length"])
        table.add_row(report["dataset"], rows, length, report["packing"], size, used, entry.path.name[:12])
    Console().print(table if entries else f"nothing is prepared in {prepared_folder(default_cache_dir())}")
    return 0


COMMANDS = {
    "cache": Command(_run_cache, _add_cache_arguments),
}
