"""The command `sft`: a table of subcommands, each imported only when it is used, so that help is instant."""

import gc
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module

from sft_experiments import __version__
from sft_experiments.errors import RunFolderError, SftError, nearest

# name -> (module, one line of help). A module holds either ``<name>(arguments) -> exit code``, for commands that take
# Hydra overrides, or ``add_<name>_arguments(parser)`` and ``run_<name>(parsed) -> exit code``.
COMMANDS = {
    "train": ("sft_experiments.app", "one run; with -m every combination of the values given"),
    "sweep": ("sft_experiments.app", "learning rate x effective batch size, or another sweep=..."),
    "plan": ("sft_experiments.plan.commands", "what a run or sweep would do and cost; nothing is trained"),
    "recommend": ("sft_experiments.plan.recommend", "where to start for a model: values, ranges, reasons"),
    "schedules": (
        "sft_experiments.training.schedule_preview",
        "all learning-rate schedules side by side, as table and picture",
    ),
    "check": (
        "sft_experiments.training.sanity_command",
        "a few steps on a few rows: would this run learn? nothing is kept",
    ),
    "compare": ("sft_experiments.report.commands", "the ranked table of the runs below some folders"),
    "report": ("sft_experiments.report.commands", "one HTML page about a sweep, to open in a browser"),
    "best": ("sft_experiments.report.commands", "the best run: its folder and the commands that use it"),
    "eval": (
        "sft_experiments.model_use.commands",
        "score a finished run's model on other data, with the same objective",
    ),
    "chat": ("sft_experiments.model_use.commands", "talk to a finished run's model in the terminal"),
    "export": ("sft_experiments.model_use.commands", "a finished run's model (merged if LoRA) with a model card"),
    "status": ("sft_experiments.sweep.commands", "the trials of a sweep, seen from another shell"),
    "doctor": ("sft_experiments.doctor", "is this machine ready? versions, devices, kernels, trackers, disk"),
    "cache": ("sft_experiments.data.commands", "list or clear the prepared data"),
}
INTERRUPTED = 130
# New objects between two looks of the garbage collector (Python's default: 700). A plan makes 100,000 and drops hardly
# one; looking at them again and again is 5 to 10% of its time. Training has a process of its own.
OBJECTS_PER_COLLECTION = 200_000


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
    try:
        return run(typed[0], typed[1:])
    except SftError as error:
        print(f"sft {typed[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # no permission, no space, a file where a folder should be
        if isinstance(error, BrokenPipeError):  # `sft compare ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"sft {typed[0]}: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return RunFolderError.exit_code
    except KeyboardInterrupt:
        print(f"sft {typed[0]}: stopped", file=sys.stderr)
        return INTERRUPTED


def run(name: str, arguments: list[str]) -> int:
    """Import and call one subcommand."""
    if name not in COMMANDS:
        print(f"sft: no command {name!r}{nearest(name, list(COMMANDS))}; see sft --help", file=sys.stderr)
        return 2
    module_name, summary = COMMANDS[name]
    module = import_module(module_name)
    if not hasattr(module, f"run_{name}"):
        return int(getattr(module, name)(arguments))
    parser = ArgumentParser(prog=f"sft {name}", description=summary, allow_abbrev=False)
    getattr(module, f"add_{name}_arguments")(parser)
    return int(getattr(module, f"run_{name}")(parser.parse_intermixed_args(arguments)))


def help_text() -> str:
    lines = [f"  {name:<11}{text}" for name, (_, text) in COMMANDS.items()]
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
