"""Advice on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sft_experiments.report.advice import Advice


def print_advice(found: Sequence[Advice], console: Console) -> None:
    """Each piece of advice: what, why, how sure, and the command on a line of its own that is never wrapped."""
    for advice in found:
        console.print()
        console.print(Text.assemble((advice.finding, "bold"), (f"  [confidence {advice.confidence}]", "dim")))
        console.print(Padding(Text(advice.evidence), (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(advice.action), (0, 0, 0, 2), expand=False))
        console.print(Text(f"    {advice.command}", style="cyan"), soft_wrap=True)
