"""Hydra 1.3 finds launchers and sweepers only in the ``hydra_plugins`` namespace: a thin shell, the code is ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from sft_experiments.sweep.planning import Launch, Planner


@dataclass
class PoolLauncherConf:
    _target_: str = "hydra_plugins.sft_experiments.PoolLauncher"


@dataclass
class GridSweeperConf:
    _target_: str = "hydra_plugins.sft_experiments.GridSweeper"


ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolLauncherConf, provider="sft_experiments")
ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="sft_experiments")


class PoolLauncher(Launcher):
    """One clean process per trial on this machine, several at once. Settings: the ``sweep`` and ``compute`` groups."""

    planner: Optional["Planner"] = None  # of the sweeper that plans cells before it launches them

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from sft_experiments.config.hydra import Composer  # late: Hydra imports this module at every start
        from sft_experiments.sweep.ledger import read_sweep
        from sft_experiments.sweep.planning import Planner
        from sft_experiments.sweep.pool import launch

        composer = Composer(self.hydra_context.config_loader, self.config)
        planner = self.planner or Planner(composer, read_sweep(Path(self.config.hydra.sweep.dir)))
        records = launch(planner, job_overrides)
        return [_job_return(list(one), record) for one, record in zip(job_overrides, records, strict=True)]


def _job_return(overrides: list[str], record: Any) -> JobReturn:
    """A record in the form that Hydra's sweepers read."""
    from sft_experiments.launch.settle import raise_for_failure  # late, as above

    returned = JobReturn(overrides=overrides)
    try:
        returned.return_value = raise_for_failure(record).objective
        returned.status = JobStatus.COMPLETED
    except Exception as failure:  # noqa: BLE001 one of ours: JobReturn carries it to whoever asks for the value
        returned.status, returned.return_value = JobStatus.FAILED, failure
    return returned


class GridSweeper(Sweeper):
    """Every combination of the sweep's axes and of the comma-separated values on the command line.

    With ``sweep.search``: points drawn at random, or proposed by Optuna.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from sft_experiments.config.hydra import Composer  # late, as above
        from sft_experiments.sweep.steps import run_sweep

        return run_sweep(Composer(self.hydra_context.config_loader, self.config), self._launch_with)

    def _launch_with(self, planner: "Planner") -> "Launch":
        if isinstance(self.launcher, PoolLauncher):
            self.launcher.planner = planner
        return self.launcher.launch
