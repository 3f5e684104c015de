"""A peer of C5: the plain TRL script as a Hydra app, for Hydra's own launchers.

python -m benchmarks.hydra_trl -m model=... data=... output=... learning_rate=1e-3,2e-3 batch=4,8
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from benchmarks.world import Job, World


@dataclass
class Settings:
    model: str = MISSING
    data: str = MISSING
    output: str = MISSING
    steps: int = Job.steps
    batch: int = Job.batch
    learning_rate: float = Job.learning_rate
    max_length: int = Job.max_length
    device: str = Job.device
    default_sweep: bool = False  # train as the embedded default does (benchmarks/default_sweep.py)


ConfigStore.instance().store("settings", Settings)


@hydra.main(version_base="1.3", config_path=None, config_name="settings")
def main(settings: Settings) -> float:
    from benchmarks.default_sweep import peer_changes, training_rows
    from benchmarks.plain_trl import train

    values = asdict(OmegaConf.to_object(settings))  # type: ignore[call-overload]
    values["output"] += f"/{settings.learning_rate}-{settings.batch}"
    if values.pop("default_sweep"):
        values["changes"] = peer_changes(settings.batch, training_rows(World(Path(settings.data).parent)))
    return train(**values)


if __name__ == "__main__":
    main()
