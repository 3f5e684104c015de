"""Hydra, and all that is asked of it: composing a command line, the cells of a sweep, the options of a group.

No other module touches Hydra or reads overrides (the plugins that it wants in a namespace of its own are in
hydra_plugins/). Hydra keeps its state in singletons: a ``Composer`` is only good while its block, or Hydra's own call,
lasts. What it gives away are composed configs, requests and plain texts.
"""

import os
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Optional

import hydra
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.override_parser.types import Override as Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.config.mistakes import CONFIG_NAME, explain
from sft_experiments.errors import ConfigError, SftError
from sft_experiments.models.shape import size_class_of
from sft_experiments.schema import Config
from sft_experiments.secrets import redact_text
from sft_experiments.values import flatten, scaled, sft_command

FULL_ERROR = "HYDRA_FULL_ERROR"
MULTIRUN_FLAGS = {"-m", "--multirun"}
SWEEP_DIR = "hydra.sweep.dir="
# Of Hydra's own settings, those that something reads here; of the first, a single run reads none.
OF_A_SWEEP = ("hydra/launcher", "hydra.launcher.", "hydra.sweep.dir")
READ = (*OF_A_SWEEP, "hydra.searchpath", "hydra.mode", "hydra/callbacks", "hydra.callbacks.")


@dataclass(frozen=True)
class Written:
    """What files of the user's own set: the chosen experiment, and options from the folders of ``--config-dir``."""

    keys: dict[str, str] = field(default_factory=dict)  # dotted key -> the file, "experiment/mine.yaml"
    groups: frozenset[str] = frozenset()  # whose option the experiment chooses


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the config itself."""

    overrides: list[str] = field(default_factory=list)  # as typed, without sweep axes
    axes: dict[str, Any] = field(default_factory=dict)  # axis key -> this trial's value
    written: Written = Written()
    root: Optional[Path] = None  # the sweep's folder; None: a single run
    concurrent_trials: int = 1
    config_dirs: list[str] = field(default_factory=list)  # that --config-dir named


# ---- what Hydra is told once


def conf_dir() -> Path:
    """The folder of the shipped configuration: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register() -> None:
    """Make the schema and the resolvers of conf/ known to Hydra and OmegaConf. Harmless to call twice."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("scaled", scaled, replace=True)
    OmegaConf.register_new_resolver("last_part", lambda name: str(name).rstrip("/").rsplit("/", 1)[-1], replace=True)
    OmegaConf.register_new_resolver("item", lambda values, index: values[index], replace=True)
    OmegaConf.register_new_resolver("words", _words, replace=True)
    OmegaConf.register_new_resolver("size_class", size_class_of, replace=True)
    OmegaConf.register_new_resolver("recommended", _recommended, replace=True)


def _words(text: str) -> list[str]:
    """Of a list with commas, as variables of the environment hold it."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _recommended(size: str, key: str, *, _root_: DictConfig) -> Any:
    """A value of the table of a size class, from conf/model/size or from a folder of the user's."""
    return size_table(_search_path(_root_), size)[key]


@lru_cache
def size_table(folders: tuple[Path, ...], size: str) -> dict[str, Any]:
    values = _option_file(folders, f"model/size/{size}")
    if values is None:
        known = sorted({file.stem for folder in folders for file in (folder / "model" / "size").glob("*.yaml")})
        raise ConfigError(f"model.size_class={size}: no such size class; allowed: {', '.join(known)}")
    return dict(values["recommended"])


# ---- where options come from


def _search_path(composed: DictConfig) -> tuple[Path, ...]:
    """The folders that a config was composed from, in Hydra's order: the first that has an option gives it."""
    # Hydra writes its search path into every composed config; a copy without the hydra node has only our folder left.
    sources = OmegaConf.select(composed, "hydra.runtime.config_sources") or []
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    for source in sources:
        if source.schema == "pkg" and not source.path.startswith("hydra"):
            folders.append(Path(str(files(source.path))))
    return tuple(folders) or (conf_dir(),)


def _option_file(folders: Sequence[Path], option: str) -> Optional[dict[str, Any]]:
    """What ``<group>/<option>.yaml`` says, before interpolation; None when no folder has it."""
    file = next((path for folder in folders if (path := folder / f"{option}.yaml").is_file()), None)
    if file is None:
        return None
    values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def written(composed: DictConfig) -> Written:
    """What the chosen experiment and the options from the user's own folders set."""
    folders = _search_path(composed)
    keys: dict[str, str] = {}
    groups: set[str] = set()
    for group, option in composed.hydra.runtime.choices.items():
        of_the_user = group == "experiment" or not (conf_dir() / f"{group}/{option}.yaml").is_file()
        if option is None or group.startswith("hydra/") or not of_the_user:
            continue
        values = _option_file(folders, f"{group}/{option}") or {}
        defaults = values.pop("defaults", [])
        prefix = "" if group == "experiment" else f"{group}."
        keys |= {f"{prefix}{key}": f"{group}/{option}.yaml" for key in flatten(values)}
        if group == "experiment":
            chosen = [str(name) for entry in defaults if isinstance(entry, dict) for name in entry]
            groups |= {name.removeprefix("override ").strip("/ ") for name in chosen}
    return Written(keys, frozenset(groups))


# ---- composing


class Composer:
    """One command line, composed; and the cells of a sweep over it.

    ``master`` is the composition of the command line itself, with what Hydra knows about it in ``master.hydra``.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, is_sweep: bool = True) -> None:
        self.master, self.is_sweep = master, is_sweep
        self._loader = loader
        self._cells: dict[tuple[str, ...], DictConfig] = {}
        self._without_hydra: dict[tuple[str, ...], bytes] = {}  # pickled: read back, a copy takes 1 ms; deepcopy 5

    @property
    def overrides(self) -> list[str]:
        """The settings as typed, Hydra's own left out."""
        return list(self.master.hydra.overrides.task)

    def request(self) -> Request:
        """The request of a single run. Raises ``ConfigError`` for a sweep."""
        if self.is_sweep:
            raise ConfigError("this command looks at one run: give one value for each key, and no sweep=...")
        return Request(self.overrides, written=written(self.master), config_dirs=self.config_dirs)

    def options(self, group: str) -> list[str]:
        """The names that ``group=`` takes, those of the user's folders included."""
        typed = list(self.master.hydra.overrides.hydra)
        names: list[str] = self._loader.get_group_options(group, config_name=CONFIG_NAME, overrides=typed)
        return sorted(names)

    @property
    def config_dirs(self) -> list[str]:
        """The folders that ``--config-dir`` named."""
        return _config_dirs(self.master.hydra.runtime)

    def command(self) -> str:
        """The command that launches this sweep, to paste, without secrets."""
        of_hydra = [item for item in self.master.hydra.overrides.hydra if not item.startswith("hydra.mode=")]
        typed = [*of_hydra, *self.overrides]
        launch = ["sweep"] if any(item.startswith("sweep=") for item in typed) else ["train", "-m"]
        return redact_text(sft_command(launch, typed, self.config_dirs))

    @property
    def named_folder(self) -> Optional[str]:
        """The folder that the user gave to the sweep (``hydra.sweep.dir=...``)."""
        typed = self.master.hydra.overrides.hydra
        return next((item[len(SWEEP_DIR) :] for item in typed if item.startswith(SWEEP_DIR)), None)

    def point_hydra_at(self, folder: Path) -> None:
        """Let every launcher, also one that composes again elsewhere, see the sweep's folder."""
        if self.named_folder is None:
            with open_dict(self.master):
                self.master.hydra.sweep.dir = str(folder)
                self.master.hydra.overrides.hydra.append(f"{SWEEP_DIR}{folder}")

    def parse(self, arguments: Sequence[str]) -> list[Override]:
        """Overrides as Hydra reads them."""
        return list(OverridesParser.create(config_loader=self._loader).parse_overrides(list(arguments)))

    def cell(self, overrides: Sequence[str]) -> DictConfig:
        """The composed config of one cell. Remembered, since grid and launcher both ask for it.

        Composing anew takes 100 to 150 ms. Cells that differ in values only, not in choices of groups, are one
        composition with the values put into a copy, last, as Hydra does it too (tests/sweep/test_cells.py).
        """
        key = (*self.master.hydra.overrides.hydra, *overrides)
        if key not in self._cells:
            cell = self._with_values(overrides)
            self._cells[key] = cell or self._loader.load_sweep_config(self.master, list(overrides))
        return self._cells[key]

    def _with_values(self, overrides: Sequence[str]) -> Optional[DictConfig]:
        """A copy of the composition of the choices among ``overrides`` with the values among them.

        None when there are only choices, or when a value is wrong: Hydra's error says where. With the choices of the
        master it is a copy of that: a value which the master has was typed as the only one of its key, so every cell
        sets it too.
        """
        choices, values = _choices_and_values(overrides)
        is_master = choices == _choices_and_values(self.overrides)[0]
        if not values and not is_master:
            return None
        chosen = self.master if is_master else self.cell(choices)
        key = (*self.master.hydra.overrides.hydra, *(self.overrides if is_master else choices))
        if key not in self._without_hydra:
            ours = OmegaConf.masked_copy(chosen, [str(name) for name in chosen if name != "hydra"])
            self._without_hydra[key] = pickle.dumps(ours)
        cell = pickle.loads(self._without_hydra[key])
        assert isinstance(cell, DictConfig)
        try:
            for parsed in self.parse(values):
                OmegaConf.update(cell, parsed.key_or_group, parsed.value(), merge=True)
        except OmegaConfBaseException:
            return None
        runtime = chosen.hydra.runtime
        with open_dict(cell):
            cell.hydra = {"runtime": {"choices": runtime.choices, "config_sources": runtime.config_sources}}
        return cell


def _config_dirs(runtime: Any) -> list[str]:
    """Of Hydra's sources, those that ``--config-dir`` named."""
    named = ("command-line", "hydra.searchpath in command-line")
    return [str(Path(source.path).resolve()) for source in runtime.config_sources if source.provider in named]


def _choices_and_values(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that choose an option of a group, add or delete a key; and plain ``group.key=value``."""
    values = [item for item in overrides if re.match(r"(?!hydra)\w+\.[\w.]+=", item)]
    return [item for item in overrides if item not in values], values


@contextmanager
def composed(arguments: Sequence[str]) -> Iterator[Composer]:
    """Compose ``arguments`` (overrides, ``-m``, ``--config-dir DIR``) as a launch would, without launching anything.

    A sweep is what names one (``sweep=...``, ``-m``) or gives several values for a key. Raises our errors for Hydra's.
    """
    register()
    overrides, multirun = _split(arguments)
    refuse_unread(overrides)
    named = [item for item in overrides if item.startswith("sweep=")]
    multirun = multirun or any(item != "sweep=none" for item in named)
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name="sft"):
            loader = GlobalHydra.instance().config_loader()
            several = multirun or _has_several_values(loader, overrides)
            mode = RunMode.MULTIRUN if several else RunMode.RUN
            refuse_unread(overrides, several)
            master = loader.load_configuration(CONFIG_NAME, overrides, mode, validate_sweep_overrides=not several)
            yield Composer(loader, master, several)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def refuse_unread(arguments: Iterable[str], is_sweep: bool = True) -> None:
    """Raise ``ConfigError`` for a setting of Hydra's own that nothing would read."""
    for argument in arguments:
        key = argument.lstrip("+~").split("=", 1)[0]
        if not key.startswith(("hydra.", "hydra/")):
            continue
        if not f"{key}.".startswith(tuple(f"{one.rstrip('.')}." for one in READ)):
            raise ConfigError(
                f"{argument}: nothing reads it here; a run's folder follows from output_dir and name, that of a sweep"
                " may be given as hydra.sweep.dir=..., and what a sweep tries as sweep=..."
            )
        if not is_sweep and key.startswith(OF_A_SWEEP):
            raise ConfigError(f"{argument}: has no effect in a single run; it is for sft sweep and sft train -m")


def _split(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Overrides, and whether a multirun was asked for. Raises ``ConfigError`` for any other of Hydra's flags."""
    overrides: list[str] = []
    multirun, rest = False, list(arguments)
    while rest:
        item = rest.pop(0)
        if item in MULTIRUN_FLAGS:
            multirun = True
        elif item == "--config-dir" or item.startswith("--config-dir="):
            folder = item.partition("=")[2] or (rest.pop(0) if rest else "")
            if not Path(folder).is_dir() or not folder:
                raise ConfigError(f"--config-dir {folder}: no such folder")
            overrides.append(f"hydra.searchpath=['file://{Path(folder).resolve()}']")
        elif item.startswith("-"):
            raise ConfigError(f"{item}: no such option here; settings are given as key=value")
        else:
            overrides.append(item)
    return overrides, multirun


def _has_several_values(loader: ConfigLoader, overrides: list[str]) -> bool:
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    return any(len(override_values(override)) > 1 for override in parsed)


# ---- reading overrides


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them, without its folders. Raises ``ConfigError`` for what is outside its grammar."""
    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise explain(error) from error


def parse_value(text: str) -> Any:
    """The typed value of the right-hand side of an override, as Hydra reads it."""
    return OverridesParser.create().parse_override(f"key={text}").value()


def override_values(override: Override) -> list[str]:
    """The overrides that one argument stands for: several for ``key=a,b``, one otherwise."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: a grid needs listed values (a,b,c or range(1,5)), sweep=random takes intervals"
        )
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def keys_of(overrides: Iterable[str]) -> list[str]:
    """The keys that overrides name, whatever sign stands before them; of ``train={seed: 1}`` those in the mapping."""
    found: list[str] = []
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        mappings = [parse_value(one.partition("=")[2]) for one in _values_of(text)] if value[:1] == "{" else []
        found += [name for mapping in mappings for name in flatten({key: mapping})] or [key]
    return list(dict.fromkeys(found))


def _values_of(text: str) -> list[str]:
    (override,) = parse([text])
    return override_values(override)


def interval_of(override: Override) -> Optional[tuple[Any, Any, bool]]:
    """Low end, high end and whether it is logarithmic, of ``key=interval(...)``; None for anything else."""
    value = override.value() if override.is_sweep_override() else None
    return (value.start, value.end, "log" in value.tags) if isinstance(value, IntervalSweep) else None


# ---- Hydra's own command line


@dataclass(frozen=True)
class Job:
    """What Hydra knows of the job that it runs now."""

    overrides: list[str]
    written: Written
    sweep_folder: Optional[Path]  # None: a single run
    config_dirs: list[str]


Work = Callable[[DictConfig, Job], float]


class _Task:
    """What Hydra calls. A single run keeps its error aside, because Hydra would print an account of its own first."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.failure: Optional[SftError] = None

    def __call__(self, composed: DictConfig) -> Optional[float]:
        register()  # a launcher may run this in a fresh process
        running = HydraConfig.get()
        is_sweep = running.mode is RunMode.MULTIRUN
        folder = Path(running.sweep.dir) if is_sweep else None
        with open_dict(composed):
            composed.hydra = {"runtime": running.runtime}
        dirs = _config_dirs(running.runtime)
        job = Job(list(running.overrides.task), written(composed), folder, dirs)
        if is_sweep:
            return self.work(composed, job)
        try:
            refuse_unread(running.overrides.hydra, is_sweep)
            return self.work(composed, job)
        except SftError as error:
            self.failure = error
            return None


def run_app(program: str, arguments: Sequence[str], work: Work) -> None:
    """Hand a command line to Hydra: ``work`` is called for the one job, or by its launcher for each job of a sweep.

    A user's mistake, and what ``work`` raises, come back as one of our errors.
    """
    refuse_unread(arguments)
    register()
    task = _Task(work)
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)(task)
    wants_traceback = os.environ.get(FULL_ERROR) == "1"
    with _as_command_line(program, arguments):
        try:
            app()
        except (HydraException, OmegaConfBaseException) as error:
            if wants_traceback:
                raise
            raise explain(error) from error
    if task.failure is not None:
        raise task.failure


@contextmanager
def _as_command_line(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads its arguments from the process, and raises instead of printing only when a variable says so."""
    before = sys.argv, os.environ.get(FULL_ERROR)
    sys.argv, os.environ[FULL_ERROR] = [program, *arguments], "1"
    try:
        yield
    finally:
        sys.argv = before[0]
        if before[1] is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before[1]
