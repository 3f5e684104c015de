"""What people type for a model or a data file, in the long form that is planned, recorded and shown."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

from sft_experiments.data.formats import FORMATS, Row
from sft_experiments.data.read import read_rows, resolve_files
from sft_experiments.errors import ConfigError
from sft_experiments.values import as_override

FIRST_ROWS = 20  # that tell the format of a file


def write_out(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings without shorthand, and one line about each that was written out.

    Raises ``ConfigError`` or ``DataError`` for a path that is not there and for a file whose format is not clear.
    """
    written: list[str] = []
    said: list[str] = []
    for setting in settings:
        key, _, value = setting.partition("=")
        long = _LONG[key](value) if key in _LONG and is_a_place(value) else None
        if long is None:
            written.append(setting)
            continue
        (options, reason) = long
        written += options
        said.append(f"  {setting}: {' '.join(options)}{reason}")
    return written, said


def is_a_place(value: str) -> bool:
    """Whether a value is a path or a Hub id rather than the name of an option. Mappings and quotes are Hydra's."""
    return any(sign in value for sign in "/.~\\") and value[:1] not in "{['\""


def _model(value: str) -> tuple[list[str], str]:
    """One id or folder; several become an axis."""
    names = [name.strip() for name in value.split(",")]
    plain = [name for name in names if not is_a_place(name)]
    if plain:
        raise ConfigError(
            f"model={value}: {', '.join(plain)} is an option and the others are Hub ids or folders; options go together"
            " (model=a,b) and ids do (model=org/a,org/b)"
        )
    for name in names:
        here = Path(name).expanduser()
        if (name.startswith((".", "/", "~")) or name.count("/") != 1) and not here.is_dir():
            raise ConfigError(f"model={name}: there is no such folder, and a Hub id has the form owner/name")
    return ["model=hub", as_override("model.name", *(_at_home(name) for name in names))], ""


def _dataset(value: str) -> tuple[list[str], str]:
    """Files or patterns, all of one format, found from their first rows."""
    patterns = [pattern.strip() for pattern in value.split(",")]
    files = resolve_files(patterns, f"dataset={value}")
    fitting = [(file, _formats_of(file)) for file in files]
    for file, formats in fitting:
        if len(formats) != 1:
            raise ConfigError(f"dataset={value}: {_unclear(file, formats)}")
    (name, *others) = dict.fromkeys(formats[0] for _, formats in fitting)
    if others:
        raise ConfigError(
            f"dataset={value}: files of several formats ({name}, {', '.join(others)}); use dataset=mixture"
        )
    listed = as_override("dataset.train_files", [_at_home(pattern) for pattern in patterns])
    reason = f"  (the columns of its first rows are those of {name})"
    return [f"dataset={name}", listed], reason


def _formats_of(file: Path) -> list[str]:
    """The formats whose columns all stand in the first rows; of one that needs a part of another's, the other."""
    rows = [row for _, row in islice(read_rows(file), FIRST_ROWS) if isinstance(row, dict)]
    if not rows:
        return []
    seen = set.intersection(*(_columns(row) for row in rows))
    found = {name: {*format.required} for name, format in FORMATS.items() if {*format.required} <= seen}
    return [name for name, needs in found.items() if not any(needs < other for other in found.values())]


def _columns(row: Row) -> set[str]:
    return {str(name) for name, value in row.items() if value is not None}


def _unclear(file: Path, formats: Iterable[str]) -> str:
    several = list(formats)
    if several:
        choices = " or ".join(f"dataset={name}" for name in several)
        return f"{file} can be read as {' and as '.join(several)}; type {choices} with dataset.train_files=[{file}]"
    first = next((row for _, row in read_rows(file) if isinstance(row, dict)), {})
    columns = ", ".join(map(str, first)) or "none"
    needs = "; ".join(f"{name} needs {', '.join(format.required)}" for name, format in FORMATS.items())
    return (
        f"no format fits the columns of {file} ({columns}): {needs}. Columns of other names are given as"
        " dataset=<format> dataset.train_files=[...] dataset.columns.<ours>=<yours>"
    )


def _at_home(path: str) -> str:
    """No shell expands ``~`` behind an equals sign."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


_LONG: dict[str, Callable[[str], tuple[list[str], str]]] = {"model": _model, "dataset": _dataset}
