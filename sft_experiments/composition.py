"""The composition of `sft train` and `sft sweep` for commands that only look: plan, recommend, schedules, check.

Hydra composes exactly as it would before a run, but nothing is launched and no folder is made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sft_experiments.compose import CONFIG_NAME, conf_dir, explain, register
from sft_experiments.errors import ConfigError
from sft_experiments.run.trial import Request, Trial, plan_trial
from sft_experiments.schema import SearchMethod
from sft_experiments.sweep.cells import override_values
from sft_experiments.sweep.grid import plan_search, plan_sweep
from sft_experiments.sweep.ledger import Sweep

if TYPE_CHECKING:
    from sft_experiments.sweep.bayes import SearchAhead

MULTIRUN_FLAGS = {"-m", "--multirun"}


@dataclass(frozen=True)
class Composition:
    """What the command line composes to, before anything is planned."""

    context: HydraContext
    master: DictConfig
    overrides: list[str]
    is_sweep: bool

    def trial(self) -> Trial:
        """The one run, planned. Raises ``ConfigError`` for a sweep."""
        if self.is_sweep:
            raise ConfigError("this command looks at one run: give one value for each key, and no sweep=...")
        experiment = self.master.hydra.runtime.choices.get("experiment")
        return plan_trial(self.master, Request(self.overrides, experiment=experiment))

    def sweep(self) -> tuple[Sweep, list[Trial]]:
        """The sweep and its planned cells."""
        plans, cells = plan_sweep(self.context, self.master, self.overrides)
        return plans, list(cells.values())

    @property
    def is_search(self) -> bool:
        """Whether the cells are chosen as the sweep goes on."""
        return self.is_sweep and self.master.sweep.search is SearchMethod.bayes

    def search(self) -> "SearchAhead":
        """The Bayesian search, what it has proposed so far, and examples of what it may."""
        from sft_experiments.sweep.bayes import look_ahead  # late: it knows all that a launch does

        plans, space = plan_search(self.context, self.master, self.overrides)
        return look_ahead(self.context, self.master, plans, space)


@contextmanager
def composed(arguments: list[str], sweep_by_default: bool = False) -> Iterator[Composition]:
    """Compose ``arguments`` (overrides, ``-m``, ``--config-dir DIR``). Hydra's errors come out as ours.

    A sweep is what names one (``sweep=...``, ``-m``) or gives several values for a key.
    """
    register()
    overrides, multirun = _split(arguments)
    named = [item for item in overrides if item.startswith("sweep=")]
    if sweep_by_default and not named:
        overrides.append("sweep=lr_x_batch")
    multirun = multirun or sweep_by_default or any(item != "sweep=none" for item in named)
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name="sft"):
            loader = GlobalHydra.instance().config_loader()
            several = multirun or _has_several_values(loader, overrides)
            mode = RunMode.MULTIRUN if several else RunMode.RUN
            master = loader.load_configuration(CONFIG_NAME, overrides, mode, validate_sweep_overrides=not several)
            ours = [item for item in overrides if not item.startswith("hydra.searchpath=")]
            yield Composition(HydraContext(config_loader=loader, callbacks=Callbacks()), master, ours, several)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def _split(arguments: list[str]) -> tuple[list[str], bool]:
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
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    return any(len(override_values(override)) > 1 for override in parsed)
