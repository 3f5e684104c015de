"""A sweep before it starts: its folder, its identity, every cell composed and checked. Light, for `sft plan`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sft_experiments.config.hydra import Composer, keys_of, written
from sft_experiments.config.load import as_mapping
from sft_experiments.config.validate import unread, unread_in_files, without_reader
from sft_experiments.errors import ConfigError, DataError, RunFolderError
from sft_experiments.launch.trial import Trial, folder_name, plan_trial
from sft_experiments.runs.folder import SWEEP_FILE
from sft_experiments.runs.identity import deciding
from sft_experiments.schema import SearchMethod
from sft_experiments.sweep.cells import SEED_AXIS, Cell, axis_keys, expand
from sft_experiments.sweep.concurrency import concurrent_trials
from sft_experiments.sweep.ledger import Sweep, read_sweep
from sft_experiments.sweep.rungs import check_early_stopping
from sft_experiments.sweep.space import Space, random_cells, search_space
from sft_experiments.values import digest, select, without

SHORT_HASH = 8


# Trains the cells with these overrides, and says how many cells were launched before them.
Launch = Callable[[list[list[str]], int], Sequence[Any]]


class Planner:
    """The cells of one sweep as trials; what was planned is remembered for the launcher."""

    def __init__(self, composer: Composer, sweep: Sweep) -> None:
        self.composer, self.sweep = composer, sweep
        # Hydra hands a launcher nothing but overrides: here it finds the trial that they were planned to.
        self._planned: dict[tuple[str, ...], Trial] = {}

    def plan(self, cells: Sequence[Cell]) -> dict[tuple[str, ...], Trial]:
        """Every cell checked and planned, by its overrides. Equal cells become one trial.

        Raises one ``ConfigError`` with the mistakes of all cells.
        """
        trials: dict[tuple[str, ...], Trial] = {}
        seen: set[str] = set()
        mistakes: dict[str, list[str]] = {}
        for cell in cells:
            try:
                trial = self._plan_now(cell.overrides)
            except (ConfigError, DataError) as error:
                mistakes.setdefault(str(error), []).append(cell.label())
                continue
            if trial.id not in seen:
                seen.add(trial.id)
                trials[tuple(cell.overrides)] = trial
        if mistakes:
            raise ConfigError("\n".join(_told(error, labels, len(cells)) for error, labels in mistakes.items()))
        self._planned |= trials
        return trials

    def trial(self, overrides: Sequence[str]) -> Trial:
        """The trial that ``plan`` made of these overrides, given away once; planned now when it did not."""
        return self._planned.pop(tuple(overrides), None) or self._plan_now(overrides)

    def _plan_now(self, overrides: Sequence[str]) -> Trial:
        composed = self.composer.cell(overrides)
        return plan_trial(composed, self.sweep.request(list(overrides), written(composed)))


def _told(error: str, labels: list[str], num_cells: int) -> str:
    """A mistake with the cells that make it; alone when all do."""
    return error if len(labels) == num_cells else "\n".join(f"{label}: {error}" for label in labels)


def plan_sweep(composer: Composer) -> tuple[Planner, dict[tuple[str, ...], Trial]]:
    """The sweep and its cells by their overrides, checked; writes nothing."""
    is_random = composer.master.sweep.search is SearchMethod.random
    cells = list((random_cells if is_random else expand)(composer))
    planner = Planner(composer, new_sweep(composer, axis_keys(cells), len(cells)))
    trials = planner.plan(cells)
    check_read(composer, trials.values())
    check_early_stopping(composer, trials.values())
    return planner, trials


@dataclass(frozen=True)
class SearchAhead:
    """A Bayesian search that is looked at without running."""

    sweep: Sweep
    space: Space
    num_trials: int
    proposed: list[Trial]  # of the points so far
    examples: list[Trial]  # of points drawn at random, to judge those to come


def check_read(composer: Composer, trials: Iterable[Trial]) -> None:
    """Raise ``ConfigError`` for a typed key, or an axis, that nothing reads in any cell: it would change nothing."""
    typed = keys_of([*composer.overrides, *(f"{key}=" for key in as_mapping(composer.master.sweep.axes))])
    files = written(composer.master).keys
    if idle := list(without_reader(composer.master, typed)):
        raise ConfigError("\n".join(idle))
    found = [[*unread(trial.config, typed), *unread_in_files(trial.config, files, typed)] for trial in trials]
    named = [{line.partition(": nothing")[0]: line for line in lines} for lines in found]
    if named and (everywhere := set.intersection(*map(set, named))):
        raise ConfigError("\n".join(named[0][name] for name in sorted(everywhere)))


def plan_search(composer: Composer) -> tuple[Planner, Space]:
    """A Bayesian search and what it may choose from, checked; writes nothing."""
    check_early_stopping(composer)
    space = search_space(composer)
    planner = Planner(composer, new_sweep(composer, list(space.dimensions), int(composer.master.sweep.num_trials)))
    if space.seeds:
        raise ConfigError(
            f"sweep.num_seeds={composer.master.sweep.num_seeds}: Bayesian search trains each point once; confirm its"
            " winner with sweep=seeds"
        )
    planner.plan(space.corners())  # mistakes in any value
    return planner, space


def new_sweep(composer: Composer, axes: list[str], num_cells: int) -> Sweep:
    """What is known before the cells are. Raises ``RunFolderError`` when the folder holds another sweep."""
    master = composer.master
    fixed, earlier = (fixed_hash(master, axes, before) for before in (False, True))
    if _is_sweep(sweep_folder(composer, earlier), earlier):
        fixed = earlier
    parallel, folder = concurrent_trials(master, num_cells), sweep_folder(composer, fixed)
    sweep = Sweep(folder, master.name, fixed, axes, {}, composer.command(), parallel, composer.config_dirs)
    check_same_sweep(sweep)
    return sweep


def fixed_hash(master: DictConfig, axes: list[str], all_are_read: bool = False) -> str:
    """A hash of everything that decides results and is not an axis, so that a changed setting is a new sweep.

    Seeds, and axes of the sweep group that are cut to one value, are left out as well: replicas and parts of a grid
    belong beside the cells that are finished. ``all_are_read``: as 0.1.0 made it.
    """
    values = as_mapping(master, resolve=False)
    values.pop("hydra", None)
    varied = {*axes, *values["sweep"]["axes"], SEED_AXIS, "train.data_seed"}
    files = {key: select(values, key) for key in ("dataset.train_files", "dataset.validation_files")}
    fixed_files = {key: value for key, value in files.items() if key.split(".")[0] not in varied}
    # Recommended values count by what takes them, which stands here as it is written: a reference.
    fed = [item for item in master.hydra.overrides.task if item.startswith(("model.size_class=", "model.recommended."))]
    return digest([without(deciding(values, all_are_read), tuple(varied)), fixed_files, *([fed] if fed else [])])


def sweep_folder(composer: Composer, fixed: str) -> Path:
    """The folder that the user named, or ``<output_dir>/<name>-<short hash>``."""
    master = composer.master
    if composer.named_folder is not None:
        return Path(master.hydra.sweep.dir)
    return Path(master.output_dir) / f"{folder_name(master.name)}-{fixed[:SHORT_HASH]}"


def _is_sweep(folder: Path, fixed: str) -> bool:
    return (folder / SWEEP_FILE).is_file() and read_sweep(folder).fixed_hash == fixed


def check_same_sweep(sweep: Sweep) -> None:
    """Refuse to mix two sweeps in one folder."""
    if not (sweep.folder / SWEEP_FILE).is_file():
        return
    earlier = read_sweep(sweep.folder)
    if earlier.fixed_hash != sweep.fixed_hash:
        raise RunFolderError(
            f"hydra.sweep.dir={sweep.folder} holds another sweep ({earlier.command}); name another folder or none"
        )
