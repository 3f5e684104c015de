"""Event streams to judge: healthy ones, made up from a seed or recorded, and faults planted into any of them."""

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sft_experiments.monitor.rules import RunFacts
from sft_experiments.runs.metrics import Event

Stream = list[Event]

STEPS, WARMUP, EVERY, EVAL_EVERY = 300, 30, 6, 30


def planned_rates(peak: float = 2e-3, steps: int = STEPS, warmup: int = WARMUP) -> list[float]:
    """Linear warmup, then cosine; the first step has rate 0, as in transformers."""
    warm = [peak * step / warmup for step in range(warmup)]
    return warm + [peak * 0.5 * (1 + math.cos(math.pi * k / (steps - warmup))) for k in range(steps - warmup)]


FACTS = RunFacts(STEPS, WARMUP, planned_rates(), memory_gib=16.0)


def healthy_stream(seed: int) -> Stream:
    """A run that learns: noisy exponential decay, steady speed and memory, eval loss a little above train loss."""
    noise = random.Random(seed)
    start, floor, pace = noise.uniform(2, 9), noise.uniform(0.1, 1.5), noise.uniform(40, 120)
    rates, stream = planned_rates(), [_evaluation(0, start)]
    for step in range(EVERY, STEPS + 1, EVERY):
        loss = floor + (start - floor) * math.exp(-step / pace)
        stream.append(
            {
                **_axes(step),
                "train/loss": loss * (1 + noise.gauss(0, 0.03)),
                "train/grad_norm": abs(noise.gauss(1.5, 0.5)) + 0.05,
                "train/learning_rate": rates[step - 1],
                "train/tokens_per_second": 5000 * (1 + noise.gauss(0, 0.08)),
                "memory/host_rss_gib": 2.0 - 0.5 * math.exp(-step / 20) + noise.gauss(0, 0.01),
                "train/changed_weights": 1.0,
            }
        )
        if step % EVAL_EVERY == 0:
            stream.append(_evaluation(step, loss + 0.04 + noise.gauss(0, 0.005)))
    return stream


def _evaluation(step: int, loss: float) -> Event:
    return {**_axes(step), "eval/loss": loss}


def _axes(step: int) -> Event:
    return {"step": step, "tokens": 1000 * step, "epoch": step / 100, "time": 0.1 * step}


# ---- faults: each changes the second half of a stream and names the rule that must notice


def trains(stream: Stream) -> Stream:
    return [event for event in stream if "train/loss" in event]


def evaluations(stream: Stream) -> Stream:
    return [event for event in stream if "eval/loss" in event]


def from_the_middle(stream: Stream) -> Stream:
    return stream[len(stream) // 2 :]


def nan_loss(stream: Stream, noise: random.Random) -> None:
    from_the_middle(trains(stream))[noise.randrange(3)]["train/loss"] = math.nan


def infinite_gradient(stream: Stream, noise: random.Random) -> None:
    from_the_middle(trains(stream))[noise.randrange(3)]["train/grad_norm"] = math.inf


def everything_masked(stream: Stream, noise: random.Random) -> None:
    for event in from_the_middle(trains(stream)):
        event["train/loss"] = 0.0


def frozen_weights(stream: Stream, noise: random.Random) -> None:
    for event in trains(stream):
        event["train/changed_weights"] = noise.uniform(0, 0.02)


def spike(stream: Stream, noise: random.Random) -> None:
    from_the_middle(trains(stream))[noise.randrange(5)]["train/loss"] += noise.uniform(2, 6)


def never_learns(stream: Stream, noise: random.Random) -> None:
    start = trains(stream)[0]["train/loss"]
    for event in trains(stream):
        event["train/loss"] = start * (1 + noise.gauss(0, 0.005))


def overfits(stream: Stream, noise: random.Random) -> None:
    half = from_the_middle(evaluations(stream))
    for index, event in enumerate(half):
        event["eval/loss"] = half[0]["eval/loss"] + 0.05 * index + noise.uniform(0, 0.01)


def gap_opens_while_both_fall(stream: Stream) -> None:
    """No fault: the train loss runs ahead, but each evaluation is better than the one before."""
    start = evaluations(stream)[0]["eval/loss"]
    for event in stream:
        share = event["step"] / stream[-1]["step"]
        for name, fall in (("train/loss", 0.9), ("eval/loss", 0.5)):
            if name in event:
                event[name] = start * (1 - fall * share)


def shares_the_machine(stream: Stream, noise: random.Random) -> None:
    """No fault: a neighbour takes half of the speed, and for moments nearly all of it."""
    for index, event in enumerate(from_the_middle(trains(stream))):
        event["train/tokens_per_second"] *= noise.uniform(0.1, 0.25) if index % 10 > 2 else noise.uniform(0.4, 0.6)


def eval_loss_turns(stream: Stream, noise: random.Random) -> None:
    half = from_the_middle(evaluations(stream))
    for index, event in enumerate(half):
        event["eval/loss"] = half[0]["eval/loss"] * (1 + 0.03 * index + noise.uniform(0, 0.005))


def wrong_schedule(stream: Stream, noise: random.Random) -> None:
    for event in from_the_middle(trains(stream)):
        event["train/learning_rate"] *= noise.uniform(0.5, 0.95)


def exploding_gradient(stream: Stream, noise: random.Random) -> None:
    for event in from_the_middle(trains(stream)):
        event["train/grad_norm"] = noise.uniform(15, 500)


def vanishing_gradient(stream: Stream, noise: random.Random) -> None:
    for event in from_the_middle(trains(stream)):
        event["train/grad_norm"] = noise.uniform(0, 5e-7)


def slows_down(stream: Stream, noise: random.Random) -> None:
    for event in from_the_middle(trains(stream)):
        event["train/tokens_per_second"] *= noise.uniform(0.1, 0.2)


def memory_nearly_full(stream: Stream, noise: random.Random) -> None:
    from_the_middle(trains(stream))[0]["memory/device_reserved_gib"] = noise.uniform(15.5, 15.9)


def memory_leak(stream: Stream, noise: random.Random) -> None:
    for index, event in enumerate(trains(stream)):
        event["memory/host_rss_gib"] = 2.0 + 0.03 * index + noise.uniform(0, 0.01)


FAULTS: dict[str, tuple[Callable[[Stream, random.Random], None], str]] = {
    "NaN loss": (nan_loss, "not_finite"),
    "infinite gradient": (infinite_gradient, "not_finite"),
    "all labels masked": (everything_masked, "zero_loss"),
    "weights that do not move": (frozen_weights, "unchanged_weights"),
    "loss spike": (spike, "loss_spike"),
    "no learning": (never_learns, "loss_not_decreasing"),
    "overfitting": (overfits, "train_eval_gap"),
    "eval loss turns": (eval_loss_turns, "eval_loss_rising"),
    "wrong schedule": (wrong_schedule, "learning_rate"),
    "exploding gradient": (exploding_gradient, "grad_norm_high"),
    "vanishing gradient": (vanishing_gradient, "grad_norm_low"),
    "slow steps": (slows_down, "throughput_drop"),
    "full memory": (memory_nearly_full, "memory_limit"),
    "memory leak": (memory_leak, "memory_growth"),
}


# ---- recorded: runs of the demo that learned, at three learning rates, three batch sizes and several seeds


@dataclass(frozen=True)
class Recording:
    """One run of the demo, its events cut down to what rules look at and rounded to four digits."""

    name: str
    facts: RunFacts
    stream: Stream


def recordings() -> list[Recording]:
    """tests/monitor/healthy_runs.json: one run per line, a column per metric. A copy that a test may change."""
    return copy.deepcopy(_recordings())


@cache
def _recordings() -> list[Recording]:
    return [_recording(run) for run in json.loads(Path(__file__).with_name("healthy_runs.json").read_text())]


def _recording(run: dict[str, Any]) -> Recording:
    rates = planned_rates(run["learning_rate"], run["total_steps"], run["warmup_steps"])
    facts = RunFacts(run["total_steps"], run["warmup_steps"], rates, memory_gib=16.0)
    stream = _events(run["eval"]) + _events(run["train"])
    stream.sort(key=lambda event: (event["step"], "eval/loss" in event))
    return Recording(f"lr={run['learning_rate']} batch={run['effective_batch_size']} seed={run['seed']}", facts, stream)


def _events(columns: dict[str, list[float | None]]) -> Stream:
    names = [name for name in columns if name != "step"]
    rows = zip(columns["step"], *(columns[name] for name in names), strict=True)
    return [
        _axes(int(step or 0)) | {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for step, *values in rows
    ]
