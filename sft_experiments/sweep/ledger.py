"""sweep.json: what a sweep varies and which cells it has. What became of the cells stands in their records."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sft_experiments.config.hydra import Request, Written, parse_value
from sft_experiments.errors import RunFolderError
from sft_experiments.files import read_json, write_json_atomically
from sft_experiments.runs.folder import SWEEP_FILE

LOCK_FILE = ".sweep.lock"


@dataclass
class Sweep:
    """The part of a sweep that is known before any trial runs."""

    folder: Path
    name: str
    fixed_hash: str  # of everything that is not an axis
    axes: list[str] = field(default_factory=list)  # keys that vary
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)  # trial id -> axis values, in launch order
    command: str = ""
    concurrent_trials: int = 1
    config_dirs: list[str] = field(default_factory=list)  # that --config-dir named

    def request(self, overrides: list[str], written: Written) -> Request:
        """The request of the cell whose overrides Hydra reports, split into fixed part and axes."""
        keyed = {override.lstrip("+").split("=", 1)[0]: override for override in overrides}
        plain = {axis.lstrip("+"): axis for axis in self.axes}
        axes = {axis: parse_value(keyed[key].split("=", 1)[1]) for key, axis in plain.items() if key in keyed}
        fixed = [override for key, override in keyed.items() if key not in plain]
        return Request(fixed, axes, written, self.folder, self.concurrent_trials, self.config_dirs)

    def write(self) -> None:
        """Write sweep.json; cells of earlier launches stay listed, so that a grid can be extended."""
        file = self.folder / SWEEP_FILE
        if file.is_file():
            earlier = read_sweep(self.folder)
            self.axes = list(dict.fromkeys([*earlier.axes, *self.axes]))
            self.cells = {**earlier.cells, **self.cells}
        content = asdict(self)
        del content["folder"]
        write_json_atomically(file, content)


def read_sweep(folder: Path) -> Sweep:
    """The sweep of a folder. Raises ``RunFolderError`` when the folder holds none."""
    content = read_json(folder / SWEEP_FILE)
    try:
        return Sweep(folder=folder, **content)
    except TypeError as error:
        raise RunFolderError(f"{folder / SWEEP_FILE} is not a sweep file of this version: {error}") from None
