"""Hydra 1.3 finds launchers and sweepers only in the ``hydra_plugins`` namespace: a thin shell, the code is ours."""

from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


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

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Any, initial_job_idx: int) -> list[JobReturn]:
        from sft_experiments.sweep.pool import launch  # late: Hydra imports this module at every start

        return launch(self.hydra_context, self.config, job_overrides, initial_job_idx)


class GridSweeper(Sweeper):
    """Every combination of the sweep's axes and of the comma-separated values on the command line, or, with
    ``sweep.search``, points drawn at random or proposed by Optuna."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher: Optional[Launcher] = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from sft_experiments.sweep.launch import sweep

        return sweep(self.hydra_context, self.config, self.launcher, arguments)
