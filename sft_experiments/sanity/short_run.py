"""The sanity check: a few steps on a few rows with the run's real settings, in a process of its own.

Nothing of the real run is touched: its folder is not written, the model is loaded anew, and checkpoints are not saved.
The only thing that stays is the cache of prepared data, which the run would have made as well.
"""

import copy
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import psutil
import torch
from transformers import TrainerCallback

from sft_experiments.data.formats import Answer
from sft_experiments.data.prepare import PreparedData, prepare_data
from sft_experiments.data.store import default_cache_dir
from sft_experiments.errors import SftError, TrainingFailed
from sft_experiments.launch.booking import show_one_gpu
from sft_experiments.launch.retry import what_helps
from sft_experiments.launch.trial import Trial
from sft_experiments.models.shape import shape_of
from sft_experiments.plan.data_facts import from_report, steps_of
from sft_experiments.plan.derive import device_memory, verdict, workload
from sft_experiments.plan.memory import estimate_memory
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.plan_file import Choice, StepPlan
from sft_experiments.runs.record import Phase
from sft_experiments.sanity.probe import Probe, look
from sft_experiments.sanity.verdicts import (
    Item,
    judge_answers,
    judge_end_probability,
    judge_labels,
    judge_loss,
    judge_trajectory,
    worst,
)
from sft_experiments.schema import Config
from sft_experiments.training.arguments import training_arguments
from sft_experiments.training.model import check_loaded_model, load_tokenizer
from sft_experiments.training.out_of_memory import is_out_of_memory, phase_of
from sft_experiments.training.run import load
from sft_experiments.training.trainer import build_trainer
from sft_experiments.values import format_seconds, gib

NUM_PROMPTS = 4
MOST_NEW_TOKENS = 64
WARMUP_SHARE = 5  # at most a fifth of the steps, so that the real learning rate is reached
UNTIMED_STEPS = 2  # the first steps allocate and compile


@dataclass
class SanityReport:
    """Everything that was found. Items come in the order in which they were looked at."""

    items: list[Item] = field(default_factory=list)
    trajectory: list[float] = field(default_factory=list)  # training loss of each step, noisy
    answers_before: list[Answer] = field(default_factory=list)
    answers_after: list[Answer] = field(default_factory=list)
    data: Optional[PreparedData] = None
    tokenizer: Any = None

    @property
    def verdict(self) -> str:
        return worst(self.items)


def check_trial(trial: Trial, num_rows: int, num_steps: int) -> SanityReport:
    """Run the check. Whatever is wrong becomes an item; nothing is raised for a fault of data, model or settings."""
    report = SanityReport()
    if trial.plan.device.value == "cuda":
        show_one_gpu(trial.config.compute.devices)
    with _Fault(report, "data", trial.config):
        report.tokenizer = load_tokenizer(trial.config.model)
        cache = default_cache_dir()
        report.data = prepare_data(trial.config.dataset, report.tokenizer, cache_dir=cache, model=trial.config.model)
        report.items.append(_data_item(report.data))
    if report.data is None:
        return report
    rows = fixed_rows(report.data, num_rows)
    end_ids = set(report.data.report.end_of_turn_ids)
    report.items += judge_labels(rows, end_ids)
    if report.verdict == "fail":
        return report
    model = None
    with _Fault(report, "model", trial.config):
        model, attention = load(trial.config, trial.plan, report.tokenizer, report.data)
        notes = check_loaded_model(model, report.tokenizer)
        report.items.append(Item("model", "warn" if notes else "pass", "; ".join(notes) or "weights are finite"))
    if model is not None:
        with _Fault(report, "training", trial.config):
            _train(_ShortRun(trial, model, attention, rows, num_steps), end_ids, report)
    return report


class _Fault:
    """An error of ours, running out of memory or divergence inside the block becomes an item; others are raised."""

    def __init__(self, report: SanityReport, stage: str, config: Config) -> None:
        self.report, self.stage, self.config = report, stage, config

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> bool:
        item = _item_of(error, self.stage, self.config) if error is not None else None
        if item is not None:
            self.report.items.append(item)
        return item is not None


PHASES = {"data": Phase.data, "model": Phase.loading, "training": Phase.training}  # of the stages of the check


def _item_of(error: BaseException, stage: str, config: Config) -> Optional[Item]:
    if is_out_of_memory(error):
        phase = phase_of(error) or PHASES[stage]
        step = "set train.per_device_train_batch_size to half, or train.activation_checkpointing=true; see sft plan"
        step = step if phase is Phase.training else what_helps(config, phase)
        return Item("memory", "fail", f"out of memory in {phase.value}: {str(error).splitlines()[0]}", step)
    if isinstance(error, TrainingFailed):
        return Item(stage, "fail", str(error), "lower train.learning_rate by 10")
    if isinstance(error, SftError):
        return Item(stage, "fail", str(error), "correct this first; nothing after it was looked at")
    return None


def _data_item(data: PreparedData) -> Item:
    train = data.report.splits["train"]
    dropped = sum(train.dropped.values())
    found = f"{train.rows:,} rows, {train.tokens:,} tokens" + (f", {dropped:,} rows left out" if dropped else "")
    kept = [finding for finding in data.report.findings if finding["policy"] == "warn"]
    if data.validation is None:
        return Item(
            "data", "fail", "no validation rows", "give dataset.validation_files or dataset.validation_fraction"
        )
    if not dropped and not kept:
        return Item("data", "pass", found)
    causes = ", ".join(sorted({str(finding["rule"]) for finding in data.report.findings}))
    return Item("data", "warn", found, f"see the findings of the data gate: {causes}")


def fixed_rows(data: PreparedData, num_rows: int) -> list[dict[str, list[int]]]:
    """Rows spread evenly over the training data: the same ones every time."""
    count = min(num_rows, len(data.train))
    indices = [index * len(data.train) // count for index in range(count)]
    return [dict(row) for row in data.train.select(indices)]


@dataclass(frozen=True)
class _ShortRun:
    """The trial that is tried, its loaded model, and how little of it is trained."""

    trial: Trial
    model: Any
    attention: Choice
    rows: list[dict[str, list[int]]]
    num_steps: int


def _train(short: _ShortRun, end_ids: set[int], report: SanityReport) -> None:
    assert report.data is not None
    trial, rows = short.trial, short.rows
    config = short_config(trial.config, short.num_steps)
    full_steps = steps_of(trial.config, from_report(report.data.report.as_json()))
    steps = short_steps(full_steps, short.num_steps, len(rows))
    limit = min(MOST_NEW_TOKENS, trial.config.generation.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(trial.plan, steps=steps, attention=short.attention)
        arguments = training_arguments(config, plan, RunFolder(Path(folder)), resumes=False)
        dataset = report.data.train.select(range(0))  # the features of the real rows
        dataset = dataset.from_list(rows, features=dataset.features)
        trainer = build_trainer(config, short.model, copy.deepcopy(report.tokenizer), arguments, (dataset, dataset))
        watch = Watch()
        trainer.add_callback(watch)
        report.items.append(_trainable_item(trainer.model))
        if report.verdict == "fail":
            return
        looked = trainer.accelerator.unwrap_model(trainer.model), rows, report.data.prompts[:NUM_PROMPTS]
        before = look(*looked, report.tokenizer, end_ids, limit)
        trainer.train()
        after = look(*looked, report.tokenizer, end_ids, limit)
    report.trajectory = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    _judge(report, before, after)
    report.items += [_memory_item(trial, report.data, watch), _speed_item(full_steps, report.data, trial.config, watch)]


def _judge(report: SanityReport, before: Probe, after: Probe) -> None:
    report.answers_before, report.answers_after = before.answers, after.answers
    report.items.append(judge_loss(before.row_losses, after.row_losses))
    optional = [
        judge_trajectory(report.trajectory),
        judge_end_probability(before.end_probability, after.end_probability),
        judge_answers(before.answers, after.answers),
    ]
    report.items += [item for item in optional if item is not None]


def short_config(config: Config, num_steps: int) -> Config:
    """The run's own settings, without trackers, evaluations and checkpoints, in one process."""
    short = copy.deepcopy(config)
    short.train.max_steps, short.train.logging_steps = num_steps, 1
    short.train.eval_on_start = short.train.load_best_model_at_end = False
    short.logger.trackers, short.compute.fsdp = [], False
    short.train.extra |= {"save_strategy": "no"}
    return short


def short_steps(full: Optional[StepPlan], num_steps: int, num_rows: int) -> StepPlan:
    """The steps of the check; warmup as planned, but short enough to reach the real learning rate."""
    planned = full.warmup_steps if full else 0
    return StepPlan(num_rows, num_steps, num_steps, min(planned, max(1, num_steps // WARMUP_SHARE)), num_rows)


def _trainable_item(model: Any) -> Item:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = f"{trainable:,} of {sum(parameter.numel() for parameter in model.parameters()):,} weights are trained"
    if trainable:
        return Item("trainable weights", "pass", found)
    return Item("trainable weights", "fail", found, "the model is frozen: no weight has requires_grad")


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Time and memory of the steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens = 0
        self._started = 0.0
        self.peak_bytes = 0
        self.on_device = torch.cuda.is_available()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.monotonic() - self._started)
        if self.on_device:
            self.peak_bytes = torch.cuda.max_memory_allocated()
        else:
            self.peak_bytes = max(self.peak_bytes, psutil.Process().memory_info().rss)

    def seconds_per_step(self) -> float:
        timed = self.seconds[UNTIMED_STEPS:] or self.seconds
        return sum(timed) / max(1, len(timed))


def _memory_item(trial: Trial, data: PreparedData, watch: Watch) -> Item:
    """What was used, and what the longest rows of the real run are estimated to need."""
    found = f"{gib(watch.peak_bytes)} {'on the device' if watch.on_device else 'resident, libraries included'}"
    shape = shape_of(trial.config.model)
    if shape is None:
        return Item("memory", "pass", found)
    estimate = estimate_memory(shape, workload(trial.config, trial.plan, from_report(data.report.as_json())))
    state = verdict(estimate, device_memory(trial.config, trial.plan))
    found += f"; estimated peak of the real run {gib(estimate.total)}" + (f": {state}" if state else "")
    step = "" if state in {None, "fits"} else "see sft plan for what would make it fit"
    return Item("memory", "pass" if state in {None, "fits"} else "warn", found, step)


def _speed_item(steps: Optional[StepPlan], data: PreparedData, config: Config, watch: Watch) -> Item:
    per_step = watch.seconds_per_step()
    train = data.report.splits["train"]
    tokens = train.tokens / max(1, train.sequences) * config.train.effective_batch_size
    found = f"{tokens / per_step:,.0f} tokens/s, {per_step:.3g} s a step"
    if steps is not None:
        total = steps.total_steps * per_step
        found += f"; {steps.total_steps} steps take about {format_seconds(total)} without evaluations"
    return Item("speed", "pass", found)
