"""Contradictions between settings, found before anything is spent. Every mistake is collected and shown at once."""

from collections.abc import Callable, Iterator
from typing import Any

from sft_experiments.data.demo import SKILLS
from sft_experiments.data.formats import FIELDS
from sft_experiments.data.sources import has_validation, sources_of
from sft_experiments.errors import ConfigError, nearest
from sft_experiments.monitor.health import check_rules
from sft_experiments.monitor.trackers import check_names
from sft_experiments.plan.cadence import resolve_interval
from sft_experiments.plan.device import installed
from sft_experiments.plan.extra import check_extra, check_upstream_names
from sft_experiments.plan.known_keys import known_hint, unknown_keys
from sft_experiments.plan.ranges import RANGES, out_of_range, outside
from sft_experiments.schema import (
    Config,
    DataFormat,
    DatasetConfig,
    DataSource,
    Direction,
    ModelSource,
    PackingStrategy,
    PeftMethod,
    Precision,
    TrainOn,
)

EXACT_MATCH = "eval/exact_match"
# What an evaluation measures and which way is better (docs/metrics.md).
OBJECTIVES = {
    "eval/loss": Direction.minimize,
    "eval/nats_per_byte": Direction.minimize,
    "eval/mean_token_accuracy": Direction.maximize,
    EXACT_MATCH: Direction.maximize,
}
ATTENTION = ["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention", "sft_packed"]


def check_config(config: Config) -> None:
    """Raise one ``ConfigError`` that lists everything that cannot work."""
    mistakes = [
        *out_of_range(config),
        *unknown_keys(config),
        *_names(config),
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


def _combinations(config: Config) -> Iterator[str]:
    scheduler, train, devices = config.scheduler, config.train, config.compute.num_devices
    if train.max_steps is not None and scheduler.warmup_steps is not None and scheduler.warmup_steps > train.max_steps:
        yield f"scheduler.warmup_steps={scheduler.warmup_steps} is more than train.max_steps={train.max_steps}"
    if devices > 1 and not config.compute.isolate:
        yield f"compute.isolate=false trains in this process, which is one: not with compute.num_devices={devices}"
    if config.compute.fsdp:
        yield from _sharding(config)
    if config.model.source is ModelSource.random and not config.model.config:
        yield "model.source=random needs model.config (transformers config keys, e.g. model_type, hidden_size)"
    for key in ("r", "lora_alpha"):
        if config.peft.method is not PeftMethod.none and getattr(config.peft, key) == 0:
            yield f"peft.{key}=0: must be at least 1 with peft={config.peft.method.value}"
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


def _sharding(config: Config) -> Iterator[str]:
    """What FSDP cannot be combined with, or has not been tried with."""
    if config.compute.num_devices == 1:
        yield "compute.fsdp=true shares a model out over devices: give compute.num_devices above 1"
    if config.peft.method is PeftMethod.qlora:
        yield "compute.fsdp=true with peft=qlora is not offered: use peft=lora"
    if "8bit" in config.train.optim:
        yield f"compute.fsdp=true with train.optim={config.train.optim} is not offered: use adamw_torch_fused"


def _cadence(config: Config) -> Iterator[str]:
    for key in ("train.logging_steps", "train.eval_steps"):
        value = getattr(config.train, key.removeprefix("train."))
        try:
            if value in RANGES[key]:
                resolve_interval(key, value, total_steps=1)
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
    if not given and dataset.validation_fraction == 0:
        yield "there would be no validation data: give dataset.validation_files or dataset.validation_fraction above 0"
    if dataset.source is DataSource.files and not dataset.train_files:
        yield "dataset.train_files is empty: give it as dataset.train_files=[train.jsonl]"
    if dataset.source is DataSource.hub and not dataset.hub_id:
        yield "dataset.hub_id is required: give it as dataset.hub_id=<owner>/<name>"
    yield from _parts(dataset)
    yield from _whole(dataset.demo)
    if dataset.format is DataFormat.text and dataset.train_on is not TrainOn.all:
        yield f"dataset.train_on={dataset.train_on.value}: plain text has no assistant turns; use dataset.train_on=all"


def _parts(dataset: DatasetConfig) -> Iterator[str]:
    """What the parts of a mixture set for themselves."""
    if dataset.source is not DataSource.mixture:
        return
    for name, part in zip(sorted(dataset.mixture), sources_of(dataset), strict=True):
        prefix = f"dataset.mixture.{name}"
        yield from outside("dataset.weight", part.weight, shown=f"{prefix}.weight")
        for column in sorted({*part.columns} - {*FIELDS}):
            yield f"{prefix}.columns.{column}: no such key{known_hint(f'dataset.columns.{column}')}"


def _whole(demo: dict[str, Any]) -> Iterator[str]:
    for key, value in demo.items():
        if isinstance(value, bool) or not isinstance(value, int):
            yield f"dataset.demo.{key}={value}: must be a whole number"


def _names(config: Config) -> Iterator[str]:
    attention = config.model.attn_implementation
    if attention not in ATTENTION:
        yield (
            f"model.attn_implementation={attention}: no such name{nearest(attention, ATTENTION)}; "
            f"allowed: {', '.join(ATTENTION)}"
        )


def _objective(config: Config) -> Iterator[str]:
    """The objective is one of the numbers of an evaluation: nothing else is known for every checkpoint."""
    metric, direction = config.objective.metric, config.objective.direction
    is_demo = config.dataset.source is DataSource.demo
    skills = [
        f"{EXACT_MATCH}/{skill}" for skill in (SKILLS if is_demo else ["<skill>"])
    ]  # of other data, any may exist
    known = [*OBJECTIVES, *skills]
    of_skill = metric in skills if is_demo else metric.startswith(f"{EXACT_MATCH}/")
    name = EXACT_MATCH if of_skill else metric
    if name not in OBJECTIVES:
        yield f"objective.metric={metric}: not measured{nearest(metric, known)}; allowed: {', '.join(known)}"
        return
    if direction is not OBJECTIVES[name]:
        yield f"objective.metric={metric} needs objective.direction={OBJECTIVES[name].value}"
    if name == EXACT_MATCH and not config.dataset.verifiable_answers:
        yield f"objective.metric={metric} is measured only with dataset.verifiable_answers=true"
    if name == EXACT_MATCH and config.generation.exact_match_rows == 0:
        yield f"objective.metric={metric} is measured only with generation.exact_match_rows above 0"
