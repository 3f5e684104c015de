"""Contradictions between settings, found before anything is spent. Every mistake is collected and shown at once."""

from collections.abc import Callable, Iterator

from sft_experiments.data.sources import has_validation
from sft_experiments.errors import ConfigError
from sft_experiments.monitor.health import check_rules
from sft_experiments.monitor.trackers import check_names
from sft_experiments.plan.cadence import resolve_interval
from sft_experiments.plan.device import installed
from sft_experiments.plan.extra import check_extra, check_upstream_names
from sft_experiments.schema import (
    Config,
    DataFormat,
    DataSource,
    Direction,
    ModelSource,
    PackingStrategy,
    PeftMethod,
    Precision,
    TrainOn,
)


def check_config(config: Config) -> None:
    """Raise one ``ConfigError`` that lists everything that cannot work."""
    mistakes = [
        *_numbers(config),
        *_cadence(config),
        *_combinations(config),
        *_data(config),
        *_objective(config),
        *check_extra(config.train.extra),
        *check_upstream_names(config.train.optim, config.scheduler.name),
        *_watching(config),
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _watching(config: Config) -> Iterator[str]:
    """Health rules and trackers check their own names."""
    checks: tuple[Callable[[], object], ...] = (
        lambda: check_rules(config.monitor.rules),
        lambda: check_names(config.logger.trackers),
    )
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield str(error)


def _numbers(config: Config) -> Iterator[str]:
    train, dataset = config.train, config.dataset
    positive = {
        "train.learning_rate": train.learning_rate,
        "train.num_train_epochs": train.num_train_epochs,
        "train.per_device_eval_batch_size": train.per_device_eval_batch_size,
        "train.max_grad_norm": train.max_grad_norm,
        "dataset.max_length": dataset.max_length,
        "sweep.num_seeds": config.sweep.num_seeds,
        "generation.max_new_tokens": config.generation.max_new_tokens,
    }
    for key, value in positive.items():
        if not 0 < value < float("inf"):
            yield f"{key}={value}: must be a number above 0"
    if train.weight_decay < 0:
        yield f"train.weight_decay={train.weight_decay}: must not be negative"
    if train.max_steps is not None and train.max_steps < 1:
        yield f"train.max_steps={train.max_steps}: must be at least 1, or null to train for train.num_train_epochs"
    if train.save_total_limit < 1:
        yield f"train.save_total_limit={train.save_total_limit}: must be at least 1"


def _combinations(config: Config) -> Iterator[str]:
    scheduler, train = config.scheduler, config.train
    if scheduler.warmup_ratio is not None and not 0 <= scheduler.warmup_ratio < 1:
        yield f"scheduler.warmup_ratio={scheduler.warmup_ratio}: must be at least 0 and below 1"
    if train.max_steps is not None and scheduler.warmup_steps is not None and scheduler.warmup_steps > train.max_steps:
        yield f"scheduler.warmup_steps={scheduler.warmup_steps} is more than train.max_steps={train.max_steps}"
    if config.compute.num_devices != 1:
        yield f"compute.num_devices={config.compute.num_devices}: training on several devices is not offered yet"
    if config.model.source is ModelSource.random and not config.model.config:
        yield "model.source=random needs model.config (transformers config keys, e.g. model_type, hidden_size)"
    if config.peft.method is not PeftMethod.none and config.peft.r < 1:
        yield f"peft.r={config.peft.r}: must be at least 1"
    if config.dataset.packing is PackingStrategy.bfd and config.dataset.max_length < 2:
        yield f"dataset.max_length={config.dataset.max_length}: packing needs at least 2 tokens"
    if config.train.early_stopping_patience is not None and not train.load_best_model_at_end:
        yield "train.early_stopping_patience needs train.load_best_model_at_end=true"
    if config.peft.method is PeftMethod.qlora and config.model.source is ModelSource.random:
        yield "peft=qlora quantises published weights: a model with model.source=random has none; use peft=lora"
    if config.peft.method is not PeftMethod.none and train.precision is Precision.pure_bf16:
        yield f"train.precision=pure_bf16 with peft={config.peft.method.value}: adapters are trained in fp32; use bf16"
    if "8bit" in train.optim and not installed("bitsandbytes"):
        yield f"train.optim={train.optim} needs bitsandbytes: pip install 'sft-experiments[quant]'"


def _cadence(config: Config) -> Iterator[str]:
    for key in ("logging_steps", "eval_steps"):
        try:
            resolve_interval(f"train.{key}", getattr(config.train, key), total_steps=1)
        except ConfigError as error:
            yield str(error)


def _data(config: Config) -> Iterator[str]:
    """Every evaluation, the best checkpoint and the objective need validation rows."""
    dataset = config.dataset
    try:
        given = has_validation(dataset)
    except ConfigError as error:  # a part of a mixture that is wrong in itself
        yield str(error)
        return
    if not 0 <= dataset.validation_fraction < 1:
        yield f"dataset.validation_fraction={dataset.validation_fraction}: must be at least 0 and below 1"
    elif not given and dataset.validation_fraction == 0:
        yield "there would be no validation data: give dataset.validation_files or dataset.validation_fraction above 0"
    if dataset.source is DataSource.files and not dataset.train_files:
        yield "dataset.train_files is empty: give it as dataset.train_files=[train.jsonl]"
    if dataset.source is DataSource.hub and not dataset.hub_id:
        yield "dataset.hub_id is required: give it as dataset.hub_id=<owner>/<name>"
    if dataset.format is DataFormat.text and dataset.train_on is not TrainOn.all:
        yield f"dataset.train_on={dataset.train_on.value}: plain text has no assistant turns; use dataset.train_on=all"


def _objective(config: Config) -> Iterator[str]:
    metric, direction = config.objective.metric, config.objective.direction
    if metric.split("/")[0] not in {"eval", "train"}:
        yield f"objective.metric={metric}: must be the name of a metric, e.g. eval/loss"
    if metric.endswith("/loss") and direction is Direction.maximize:
        yield f"objective.direction=maximize with objective.metric={metric}: a loss is minimized"
    if "exact_match" in metric and direction is Direction.minimize:
        yield f"objective.metric={metric} needs objective.direction=maximize"
    if "exact_match" in metric and not config.dataset.verifiable_answers:
        yield f"objective.metric={metric} is measured only with dataset.verifiable_answers=true"
