"""How long the table of 1,000 runs takes, and the page of 100: ``python -m benchmarks.compare_1000_runs``.

The records are of real size: the embedded default's composed config, a log tail in each failure, metrics of 1,000
events per run for the page. Each command runs as a user would run it, in a process of its own, imports included.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.harness import measure, table, write_result
from sft_experiments.config.hydra import composed
from sft_experiments.launch.trial import plan_run
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Failure, Record, Status

NUM_RUNS, NUM_PAGE_RUNS, NUM_EVENTS = 1_000, 100, 1_000
LIMIT_SECONDS = 3.0


def write_sweep(root: Path, num_runs: int, num_events: int) -> None:
    """``num_runs`` trials over 25 learning rates, 4 batch sizes and seeds; one in twenty diverged."""
    with composed(["model=tiny", "dataset=demo"]) as composition:
        record = plan_run(composition).record
    chance = random.Random(0)
    for number in range(num_runs):
        rate, batch = 1e-4 * 1.2 ** (number % 25), 8 * 2 ** (number // 25 % 4)
        write_run(root, record, rate, batch, 42 + number // 100, chance, num_events)


def write_run(
    root: Path, like: Record, rate: float, batch: int, seed: int, chance: random.Random, num_events: int
) -> None:
    train = {**like.config["train"], "learning_rate": rate, "effective_batch_size": batch, "seed": seed}
    diverged = chance.random() < 0.05
    record = replace(
        like,
        trial_id=f"{chance.getrandbits(48):012x}",
        status=Status.diverged if diverged else Status.completed,
        axes={"train.learning_rate": rate, "train.effective_batch_size": batch},
        sweep=root.name,
        config={**like.config, "train": {**train, "data_seed": seed}},
        objective=None if diverged else 0.3 + abs(rate - 2e-3) * 50 + chance.gauss(0, 0.01),
        metrics={"best/step": 200, "tokens": 240_000, "eval/exact_match": chance.random()},
        timings={"train": 20 + chance.random(), "total": 25 + chance.random()},
        failure=Failure("TrainingFailed", "loss is not finite", ["a line of the log"] * 20) if diverged else None,
    )
    folder = RunFolder(root / f"learning_rate={rate:g}_batch={batch}_seed={seed}-{record.trial_id}")
    folder.path.mkdir(parents=True)
    content = asdict(record) | {"status": record.status.value}
    folder.record.write_text(json.dumps(content, indent=2), encoding="utf-8")  # not synced: speeds up the preparation
    names = ("train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second", "memory/host_rss_gib")
    with folder.metrics.open("w", encoding="utf-8") as file:
        for step in range(num_events):
            event = {"step": step, "tokens": 600 * step} | {name: chance.random() for name in names}
            file.write(json.dumps(event) + "\n")


def command(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run(
        [sys.executable, "-m", "sft_experiments", *words], check=True, stdout=subprocess.DEVNULL
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        many, page = Path(scratch) / "many", Path(scratch) / "page"
        write_sweep(many, NUM_RUNS, num_events=1)
        write_sweep(page, NUM_PAGE_RUNS, NUM_EVENTS)
        size = sum(file.stat().st_size for file in many.rglob("record.json")) / NUM_RUNS
        results = measure(
            {
                f"compare {NUM_RUNS} runs": command("compare", str(many)),
                f"compare {NUM_RUNS} runs --format json": command("compare", str(many), "--format", "json"),
                f"report {NUM_PAGE_RUNS} runs x {NUM_EVENTS} events": command("report", str(page)),
            },
            repeats=3,
        )
    rows = [(name, result.cpu_median, result.wall_median) for name, result in results.items()]
    print(table(["command", "CPU s", "wall s"], rows))
    write_result(
        "compare_1000_runs",
        {"record_bytes": size, "results": {name: result.as_dict() for name, result in results.items()}},
    )
    slowest = results[f"compare {NUM_RUNS} runs"].cpu_median
    sys.exit(f"the table takes {slowest:.2f} s of CPU, more than {LIMIT_SECONDS} s" if slowest > LIMIT_SECONDS else 0)


if __name__ == "__main__":
    main()
