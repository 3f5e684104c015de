"""One family of errors for the person at the shell: one line that names the key, the value and what is allowed.

Every error survives pickling (launchers send them between processes) and carries the exit code that the
command ends with. The codes are documented in docs/exit-codes.md.
"""

from difflib import get_close_matches


class SftError(Exception):
    """Anything that went wrong and that the user can act on. The message is shown as it is, without a traceback."""

    exit_code = 1


class ConfigError(SftError):
    """A key, a value or a combination of settings that cannot work. Found before anything is spent."""

    exit_code = 2


class DataError(SftError):
    """A data file or row that cannot be trained on as configured."""

    exit_code = 3


class ModelError(SftError):
    """A model or tokenizer that cannot be loaded, or that does not fit the data."""

    exit_code = 4


class MissingDependencyError(SftError):
    """An optional package is needed. The message names the extra that installs it."""

    exit_code = 5


class RunFolderError(SftError):
    """A run folder or a file in it that is missing, unreadable, in use, or not ours."""

    exit_code = 6


class TrainingFailed(SftError):
    """A run ended without a trained model. ``status`` is its class: failed, killed, timeout, oom or diverged."""

    def __init__(self, message: str, status: str = "failed") -> None:
        super().__init__(message, status)  # both in args, so that pickling restores both
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class SweepFailed(SftError):
    """Some trials of a sweep did not complete; the others did, and their results are kept."""


def nearest(word: str, choices: list[str]) -> str:
    """``; did you mean 'x' or 'y'?`` for a mistyped word, or an empty string when nothing is close."""
    close = get_close_matches(word, choices, n=3, cutoff=0.6)
    return "; did you mean " + " or ".join(repr(match) for match in close) + "?" if close else ""


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
