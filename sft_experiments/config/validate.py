"""Contradictions between settings, found before anything is spent. Every mistake is collected and shown at once."""

import ast
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional, get_args

from omegaconf import DictConfig, OmegaConf

from sft_experiments.config.known_keys import KNOWN_KEYS, OWNED, known_hint
from sft_experiments.config.load import to_plain
from sft_experiments.data.formats import TEXT, format_of, known_fields
from sft_experiments.data.sources import SKILLS, has_validation, sources_of
from sft_experiments.errors import ConfigError, MissingDependencyError, nearest
from sft_experiments.keys import POSITIVE, SEED, Range, With
from sft_experiments.monitor.health import check_rules
from sft_experiments.monitor.trackers.register import check_names
from sft_experiments.plan.arithmetic import SCHEDULES, resolve_interval, schedule_fault
from sft_experiments.plan.data_facts import data_facts, steps_of
from sft_experiments.plan.machine import installed
from sft_experiments.runs.identity import key_of
from sft_experiments.runs.metrics import EXACT_MATCH, objectives
from sft_experiments.schema import (
    Config,
    DatasetConfig,
    DataSource,
    ModelSource,
    PackingStrategy,
    PeftMethod,
    SchedulerConfig,
    TrainOn,
)
from sft_experiments.values import flatten, format_value

# That train and resume with weights in parts, over two ranks (tests/training/test_sharded.py). Not so: adafactor (mixes
# whole and sharded tensors), adagrad (keeps its state by the whole ones), sgd (nothing to resume), all of bitsandbytes.
SHARDED_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "rmsprop")
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
        *check_upstream_names(config.train.optim, config.scheduler),
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
    """Settings that are right one by one, and wrong together."""
    yield from _training(config)
    yield from _adapter(config)
    devices = config.compute.num_devices
    if devices > 1 and not config.compute.isolate:
        yield f"compute.isolate=false trains in this process, which is one: not with compute.num_devices={devices}"
    if config.compute.fsdp:
        yield from _sharding(config)
    if config.model.source is ModelSource.random and not config.model.config:
        yield "model.source=random needs model.config (transformers config keys, e.g. model_type, hidden_size)"
    if config.dataset.packing is PackingStrategy.bfd and config.dataset.max_length < 2:
        yield f"dataset.max_length={config.dataset.max_length}: packing needs at least 2 tokens"


def _training(config: Config) -> Iterator[str]:
    scheduler, train = config.scheduler, config.train
    if train.max_steps is not None and scheduler.warmup_steps is not None and scheduler.warmup_steps > train.max_steps:
        yield f"scheduler.warmup_steps={scheduler.warmup_steps} is more than train.max_steps={train.max_steps}"
    end = scheduler.kwargs.get("lr_end", 1e-7) if scheduler.name == "polynomial" else 0  # transformers' default
    if not isinstance(end, (int, float)) or end >= train.learning_rate:
        rate = format_value(train.learning_rate)
        yield f"scheduler.kwargs.lr_end={format_value(end)} must be a number below train.learning_rate={rate}"
    if train.early_stopping_patience is not None and not train.load_best_model_at_end:
        yield "train.early_stopping_patience needs train.load_best_model_at_end=true"
    if (needed := package_of(train.optim)) and not installed(needed[0]):
        yield f"train.optim={train.optim} needs {needed[0]}, which is not installed: pip install {needed[1]}"


# Parts of an optimizer's name -> the module that it needs, and what installs it; the first that fits counts.
OPTIMIZER_PACKAGES = {
    r"^adamw_torch_(4|8)bit$": ("torchao", "torchao"),
    r"^adamw_torch_xla$": ("torch_xla", "torch_xla"),
    r"^adamw_torch_npu": ("torch_npu", "torch_npu"),
    r"^adamw_anyprecision$": ("torchdistx", "torchdistx"),
    r"^galore_": ("galore_torch", "galore-torch"),
    r"^apollo_": ("apollo_torch", "apollo-torch"),
    r"lomo$": ("lomo_optim", "lomo-optim"),
    r"^grokadamw$": ("grokadamw", "grokadamw"),
    r"^schedule_free_": ("schedulefree", "schedulefree"),
    r"^stable_adamw$": ("optimi", "torch-optimi"),
    r"8bit|32bit|bnb|^ademamix": ("bitsandbytes", "'sft-experiments[quant]'"),
}


def package_of(optim: str) -> Optional[tuple[str, str]]:
    """The module that an optimizer of transformers needs beside torch, and what installs it; None: nothing."""
    return next((needed for part, needed in OPTIMIZER_PACKAGES.items() if re.search(part, optim)), None)


def _adapter(config: Config) -> Iterator[str]:
    peft = config.peft
    if peft.method is PeftMethod.none:
        return
    for key in ("r", "lora_alpha"):
        if getattr(peft, key) == 0:
            yield f"peft.{key}=0: must be at least 1 with peft={peft.method.value}"
    if peft.method is PeftMethod.qlora and config.model.source is ModelSource.random:
        yield "peft=qlora quantises published weights: a model with model.source=random has none; use peft=lora"


def _sharding(config: Config) -> Iterator[str]:
    """What FSDP cannot be combined with, or has not been tried with."""
    if config.compute.num_devices == 1:
        yield "compute.fsdp=true shares a model out over devices: give compute.num_devices above 1"
    if config.peft.method is PeftMethod.qlora:
        yield "compute.fsdp=true with peft=qlora is not offered: use peft=lora"
    if config.train.optim not in SHARDED_OPTIMIZERS:
        tried = ", ".join(SHARDED_OPTIMIZERS)
        yield f"compute.fsdp=true with train.optim={config.train.optim} is not offered: use one of {tried}"


def _cadence(config: Config) -> Iterator[str]:
    for key in ("train.logging_steps", "train.eval_steps"):
        value = getattr(config.train, key.removeprefix("train."))
        try:
            if value in POSITIVE:
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
    yield from _formats(dataset)
    if dataset.format == TEXT and dataset.train_on is not TrainOn.all:
        yield f"dataset.train_on={dataset.train_on.value}: plain text has no assistant turns; use dataset.train_on=all"


def _formats(dataset: DatasetConfig) -> Iterator[str]:
    is_mixture = dataset.source is DataSource.mixture
    keys = [f"dataset.mixture.{name}" for name in sorted(dataset.mixture)] if is_mixture else ["dataset"]
    for key, source in zip(keys, sources_of(dataset), strict=True):
        try:
            format_of(source, key)
        except ConfigError as error:
            yield str(error)


def _parts(dataset: DatasetConfig) -> Iterator[str]:
    """What the parts of a mixture set for themselves."""
    if dataset.source is not DataSource.mixture:
        return
    for name, part in zip(sorted(dataset.mixture), sources_of(dataset), strict=True):
        prefix = f"dataset.mixture.{name}"
        yield from outside("dataset.weight", part.weight, shown=f"{prefix}.weight")
        for column in sorted({*part.columns} - {*known_fields()}):
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
    allowed = objectives()
    known = [*allowed, *skills]
    of_skill = metric in skills if is_demo else metric.startswith(f"{EXACT_MATCH}/")
    name = EXACT_MATCH if of_skill else metric
    if name not in allowed:
        yield f"objective.metric={metric}: not measured{nearest(metric, known)}; allowed: {', '.join(known)}"
        return
    if direction is not allowed[name]:
        yield f"objective.metric={metric} needs objective.direction={allowed[name].value}"
    if name == EXACT_MATCH and not config.dataset.verifiable_answers:
        yield f"objective.metric={metric} is measured only with dataset.verifiable_answers=true"
    if name == EXACT_MATCH and config.generation.exact_match_rows == 0:
        yield f"objective.metric={metric} is measured only with generation.exact_match_rows above 0"


# Schedules that react to the loss: their rates cannot be planned, previewed or compared between cells.
FOLLOWS_LOSS = {"reduce_lr_on_plateau", "greedy"}


def check_upstream_names(optim: str, scheduler: SchedulerConfig) -> Iterator[str]:
    """One line for an optimizer or scheduler that neither the installed transformers nor a plugin has."""
    schedules = [name for name in upstream_choices("trainer_utils.py", "SchedulerType") if name not in FOLLOWS_LOSS]
    if scheduler.name in SCHEDULES and scheduler.name in schedules:
        yield f"scheduler.name={scheduler.name}: a plugin's schedule has the name of one of transformers': rename it"
    schedules += SCHEDULES
    named = {
        "train.optim": (optim, upstream_choices("training_args.py", "OptimizerNames")),
        "scheduler.name": (scheduler.name, schedules),
    }
    for key, (value, allowed) in named.items():
        if value not in allowed:
            yield f"{key}={value}: no such name{nearest(value, list(allowed))}; allowed: {', '.join(allowed)}"
    if scheduler.name in SCHEDULES:
        yield from filter(None, [schedule_fault(scheduler)])
    elif (arguments := schedule_arguments().get(scheduler.name)) is not None:
        for name in sorted({*scheduler.kwargs} - {*arguments}):
            takes = f"it takes {', '.join(arguments)}" if arguments else "it takes none"
            yield f"scheduler.kwargs.{name}: the schedule {scheduler.name} has no such argument; {takes}"


@lru_cache
def schedule_arguments() -> dict[str, tuple[str, ...]]:
    """What ``scheduler.kwargs`` may hold for each schedule of the installed transformers, read from its source."""
    text = _source("transformers", "optimization.py").read_text(encoding="utf-8")
    signatures = dict(re.findall(r"^def (get_\w+)\((.*?)\)[^)\n]*:$", text, re.MULTILINE | re.DOTALL))
    functions = dict(re.findall(r"^    SchedulerType\.(\w+): (get_\w+)", text, re.MULTILINE))
    found = {}
    for statement in _class_body(_source("transformers", "trainer_utils.py"), "SchedulerType"):
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            function = functions.get(ast.unparse(statement.targets[0]))
            if function in signatures:
                name = str(statement.value.value)
                found[name] = _own_arguments(signatures[function]) + (("decay_ratio",) if "decay" in name else ())
    return found


def _own_arguments(signature: str) -> tuple[str, ...]:
    """Of a schedule: those that the trainer does not give itself."""
    (function,) = ast.parse(f"def schedule({signature}): ...").body
    assert isinstance(function, ast.FunctionDef)
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    return tuple(one.arg for one in function.args.args if one.arg not in given)


def check_extra(extra: dict[str, Any]) -> Iterator[str]:
    """One line for each key of train.extra that is ours, or that the installed SFTConfig lacks."""
    if not extra:
        return
    known = sft_config_fields()
    for key in extra:
        if key in OWNED:
            yield f"train.extra.{key}: set {OWNED[key]} instead"
        elif key not in known:
            yield f"train.extra.{key}: the installed SFTConfig has no such field{nearest(key, sorted(known))}"


@lru_cache
def sft_config_fields() -> frozenset[str]:
    """Field names of the installed SFTConfig and its bases, read from their source in milliseconds."""
    return frozenset(
        [
            *_annotated(_source("trl", "trainer/sft_config.py"), "SFTConfig"),
            *_annotated(_source("trl", "trainer/base_config.py"), "_BaseConfig"),
            *_annotated(_source("transformers", "training_args.py"), "TrainingArguments"),
        ]
    )


@lru_cache
def upstream_choices(file: str, enum: str) -> tuple[str, ...]:
    """The values of a string enum of the installed transformers, e.g. the names of its optimizers."""
    return tuple(
        str(statement.value.value)
        for statement in _class_body(_source("transformers", file), enum)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
    )


def _class_body(file: Path, name: str) -> list[ast.stmt]:
    """The statements of a class. Parsed up to the next class or function only: a whole module may take 20 ms."""
    text = file.read_text(encoding="utf-8")
    found = re.search(rf"^class {name}\b.*?(?=^class |^def |^@|\Z)", text, re.MULTILINE | re.DOTALL)
    parsed = ast.parse(found.group()).body[0] if found else None
    return parsed.body if isinstance(parsed, ast.ClassDef) else []


def _source(package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"the package {package} is not installed: pip install sft-experiments")
    return Path(spec.origin).parent / file


def _annotated(file: Path, class_name: str) -> list[str]:
    return [
        statement.target.id
        for statement in _class_body(file, class_name)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]


# Numbers of the mapping that the schema cannot name.
_OF_THE_DEMO = {
    "dataset.demo.num_train": Range(len(SKILLS)),  # one per skill
    "dataset.demo.num_validation": Range(len(SKILLS)),
    "dataset.demo.seed": SEED,
}


def out_of_range(config: Any, prefix: str = "") -> Iterator[str]:
    """One line for every number of a config (or a group of it) that is out of its range; null and words pass."""
    for field in fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        null = ", or null" if type(None) in get_args(field.type) else ""
        if is_dataclass(value):
            yield from out_of_range(value, f"{key}.")
        elif isinstance(value, dict):
            yield from (line for name, item in value.items() for line in outside(f"{key}.{name}", item))
        else:
            yield from (f"{line}{null}" for line in outside(key, value))


def outside(key: str, value: Any, shown: str = "") -> Iterator[str]:
    """A line when a number, or one of a list, is not what the table allows. ``shown``: the key to name instead."""
    allowed = _OF_THE_DEMO.get(key) or key_of(key).within
    numbers = value if isinstance(value, list) else [value]
    if allowed and any(isinstance(number, (int, float)) and number not in allowed for number in numbers):
        yield f"{shown or key}={value}: must be {allowed}"


def check_warmup(config: Config) -> None:
    """Raise ``ConfigError`` for a warmup longer than the training, as far as that is known before the preparation."""
    if config.scheduler.warmup_steps is not None:  # a share of the training is never longer than it
        steps_of(config, data_facts(config))


def unread(config: Config, typed: Iterable[str]) -> Iterator[str]:
    """One line for each typed key that nothing reads with the chosen options: it would change nothing."""
    flat = flatten(to_plain(config))
    for name in dict.fromkeys(typed):
        if found := _in_the_way(name, flat):
            yield f"{name}: {_told(found[0], flat)}{found[1]}"


def unread_in_files(config: Config, files: Mapping[str, str], typed: Collection[str]) -> Iterator[str]:
    """The same for keys of the user's files, given as key -> file, unless what is typed stands in their way."""
    flat = flatten(to_plain(config))
    for name, file in files.items():
        if (found := _in_the_way(name, flat)) is None:
            continue
        group = found[0].key.split(".")[0]
        is_overruled = found[0].key in typed or (group in typed and not file.startswith(f"{group}/"))
        if not is_overruled:
            yield f"{file}: {name}: {_told(found[0], flat)}{found[1]}"


def without_reader(raw: DictConfig, typed: Iterable[str]) -> Iterator[str]:
    """One line for each typed key that other values would refer to, of which none is left in the composed ``raw``."""
    sources = [name for name in dict.fromkeys(typed) if key_of(name).is_source]
    if not sources:
        return
    values = OmegaConf.to_container(OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"]))
    assert isinstance(values, dict)
    texts = [str(value) for value in flatten({str(key): value for key, value in values.items()}).values()]
    for name in sources:
        if not any(re.search(rf"\$\{{[^}}]*\b{re.escape(name)}\b", text) for text in texts):
            yield f"{name}: nothing reads it: the values that follow from it are given themselves"


def _in_the_way(name: str, flat: dict[str, Any]) -> Optional[tuple[With, str]]:
    """The other key with which nothing reads this one, and what to do; None when it is read."""
    key = key_of(name)
    if key.only_with is not None and not key.is_read(flat):
        other, values, instead = key.only_with
        allowed = "null" if values == ("None",) else " or ".join(values)
        return key.only_with, f"; it is read with {other}={allowed}" + (f" ({instead})" if instead else "")
    idle = key.idles(flat) if flat.get(name) else None  # 0, null and nothing are what happens
    return (idle, f"; {idle.instead}" if idle.instead else "") if idle else None


def _told(other: With, flat: dict[str, Any]) -> str:
    return f"nothing reads it with {other.key}={format_value(flat[other.key])}"


def unknown_keys(config: Config) -> Iterator[str]:
    """One line for each key of the data set's mappings that means nothing (monitor/health.py sees to its rules)."""
    dataset = config.dataset
    given = {"dataset.columns": [*dataset.columns], "dataset.rules": [*dataset.rules], "dataset.demo": [*dataset.demo]}
    for mapping, names in given.items():
        for key in sorted(set(names) - set(KNOWN_KEYS[mapping]())):
            yield f"{mapping}.{key}: no such key{known_hint(f'{mapping}.{key}')}"
