"""The command `sft`: a table of subcommands, each imported only when it is used, so that help is instant.

A module of this room holds ``COMMANDS``: the name of each of its subcommands, and a ``Command``.
"""

import gc
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from sft_experiments import __version__
from sft_experiments.errors import RunFolderError, SftError, nearest

# name -> (module of this room, one line of help), in the order of the help
TABLE = {
    "train": ("train", "one run; with -m every combination of the values given"),
    "sweep": ("train", "learning rate x effective batch size, or another sweep=..."),
    "plan": ("plan", "what a run or sweep would do and cost; nothing is trained"),
    "recommend": ("recommend", "where to start for a model: values, ranges, reasons"),
    "schedules": ("schedules", "all learning-rate schedules side by side, as table and picture"),
    "check": ("check", "a few steps on a few rows: would this run learn? nothing is kept"),
    "compare": ("results", "the ranked table of the runs below some folders"),
    "report": ("results", "one HTML page about a sweep, to open in a browser"),
    "best": ("results", "the best run: its folder and the commands that use it"),
    "eval": ("trained", "score a finished run's model on other data, with the same objective"),
    "chat": ("trained", "talk to a finished run's model in the terminal"),
    "export": ("trained", "a finished run's model (merged if LoRA) with a model card"),
    "status": ("status", "the trials of a sweep, seen from another shell"),
    "doctor": ("doctor", "is this machine ready? versions, devices, kernels, trackers, disk"),
    "cache": ("cache", "list or clear the prepared data"),
}
INTERRUPTED = 130
SHORTHAND = re.compile(r"(model|dataset)=[^=]*[/.~\\]")  # names of options have none of these
# New objects between two looks of the garbage collector (Python's default: 700). A plan makes 100,000 and drops hardly
# one; looking at them again and again is 5 to 10% of its time. Training has a process of its own.
OBJECTS_PER_COLLECTION = 200_000


@dataclass(frozen=True)
class Command:
    """What every subcommand promises: it declares its arguments, and runs with them parsed.

    ``run`` returns the exit code; one of our errors that it raises becomes one line on stderr and that error's code.
    With ``takes_settings`` all that is not declared (``key=value``, ``-m``, ``--config-dir DIR``) arrives, in order, as
    ``settings``. With ``help_by_hydra`` the flag ``--help`` is one of these.
    """

    run: Callable[[Namespace], int]
    add_arguments: Callable[[ArgumentParser], None] = lambda parser: None
    usage: str | None = None
    takes_settings: bool = False
    help_by_hydra: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. A user's mistake is one line on stderr and an exit code (docs/exit-codes.md)."""
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if not typed or typed[0] in {"-h", "--help", "help"}:
        print(help_text())
        return 0
    if typed[0] == "--version":
        print(f"sft_experiments {__version__}")
        return 0
    from sft_experiments.terminal import lasting_output  # slow: rich, which help does without

    try:
        with lasting_output():
            return run(typed[0], typed[1:])
    except SftError as error:
        print(f"sft {typed[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # no permission, no space, a file where a folder should be
        print(f"sft {typed[0]}: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return RunFolderError.exit_code
    except KeyboardInterrupt:
        print(f"sft {typed[0]}: stopped", file=sys.stderr)
        return INTERRUPTED


def run(name: str, arguments: list[str]) -> int:
    """Import one subcommand, parse its arguments and run it."""
    if name not in TABLE:
        print(f"sft: no command {name!r}{nearest(name, list(TABLE))}; see sft --help", file=sys.stderr)
        return 2
    from sft_experiments.plan.machine import stand_alone  # slow: OmegaConf, which help does without

    stand_alone()
    module, summary = TABLE[name]
    command: Command = import_module(f"{__name__}.{module}").COMMANDS[name]
    parser = ArgumentParser(
        prog=f"sft {name}",
        usage=command.usage,
        description=summary,
        allow_abbrev=False,
        add_help=not command.help_by_hydra,
    )
    command.add_arguments(parser)
    if command.takes_settings:
        parsed, settings = parser.parse_known_args(arguments)
        parsed.settings = longhand(settings)
    else:
        parsed = parser.parse_intermixed_args(arguments)
    return command.run(parsed)


def longhand(settings: Sequence[str]) -> list[str]:
    """The settings with ``model=<Hub id or folder>`` and ``dataset=<file>`` written out, each said on stderr."""
    if not any(SHORTHAND.match(setting) for setting in settings):
        return list(settings)
    from sft_experiments.config.shorthand import write_out  # slow: the data formats, and rarely needed

    written, said = write_out(settings)
    for line in said:
        print(line, file=sys.stderr)
    return written


def help_text() -> str:
    """What `sft --help` prints."""
    lines = [f"  {name:<11}{text}" for name, (_, text) in TABLE.items()]
    return "\n".join(
        [
            "sft - find out which learning rate, batch size, schedule and data make a model learn",
            "",
            "Usage: sft COMMAND [ARGUMENTS]        sft COMMAND --help",
            "",
            *lines,
            "",
            "Start with: sft sweep     (a 3x3 grid on the embedded demo, a few minutes on a laptop)",
        ]
    )
