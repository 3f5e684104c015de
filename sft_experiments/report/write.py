"""Write the report of one or several folders."""

from collections.abc import Sequence
from pathlib import Path

from sft_experiments.report.compare import load_comparison
from sft_experiments.report.page import render_page
from sft_experiments.run.files import write_text_atomically

REPORT_FILE = "report.html"


def write_report(directories: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the page about all runs below ``directories`` and return its path, ``report.html`` in the first by default.

    Safe while trials run: records are read as they are, and the page is replaced whole. Raises ``RunFolderError``
    when there is no run to report on.
    """
    chosen = [directories] if isinstance(directories, Path) else list(directories)
    comparison = load_comparison(chosen)
    path = out or chosen[0] / REPORT_FILE
    title = ", ".join(dict.fromkeys(directory.resolve().name for directory in chosen))
    write_text_atomically(path, render_page(comparison, title))
    return path
