"""A peer of C6, run by a Python that has Ray Tune: its own scheduler decides over recorded curves, in a real tune run.

``python benchmarks/ray_asha.py FILE``: FILE holds the losses of each cell at its looks, and settings. Prints how many
looks each cell got. Imports nothing of ours, whose dependencies that environment does not have.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def run(curves: dict[str, list[float]], order: list[str], slots: int, reduction_factor: float) -> dict[str, int]:
    """Looks by cell. Everything but the reduction factor is Tune's default."""

    def replay(config: dict[str, Any]) -> None:
        for loss in curves[config["cell"]]:
            tune.report({"loss": loss})

    looks = max(map(len, curves.values()))
    scheduler = ASHAScheduler(metric="loss", mode="min", max_t=looks, reduction_factor=reduction_factor)
    config = tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=slots, reuse_actors=True)
    quiet = tune.RunConfig(verbose=0)
    results = tune.Tuner(
        replay, param_space={"cell": tune.grid_search(order)}, tune_config=config, run_config=quiet
    ).fit()
    return {result.config["cell"]: result.metrics["training_iteration"] for result in results}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    ray.init(num_cpus=job["slots"], include_dashboard=False, log_to_driver=False, logging_level="error")
    looks = [run(job["curves"], order, job["slots"], job["reduction_factor"]) for order in job["orders"]]
    print(json.dumps({"version": ray.__version__, "looks": looks}))


if __name__ == "__main__":
    main()
