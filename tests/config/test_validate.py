"""Contradictions are refused before anything is spent, in one line that names the key."""

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.config.validate import check_upstream_names, upstream_choices
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import plan_run
from sft_experiments.schema import SchedulerConfig

FILES = ["dataset=messages", "dataset.train_files=[rows.jsonl]"]
CONTRADICTIONS = {
    "dataset.max_length": ["dataset.packing=bfd", "dataset.max_length=1"],
    "scheduler.warmup_steps=50 is more than": ["scheduler.warmup_steps=50", "train.max_steps=20"],
    "no validation data": [*FILES, "dataset.validation_fraction=0"],
    "scheduler.kwargs.lr_end=low must be a number": ["scheduler=polynomial", "scheduler.kwargs.lr_end=low"],
    "scheduler.kwargs.lr_end=1e-7 must be a number below train.learning_rate=1e-8": [
        *("scheduler=polynomial", "~scheduler.kwargs.lr_end", "train.learning_rate=1e-8"),
    ],
    "scheduler.kwargs.lr_end=1e-3 must be a number below train.learning_rate=5e-4": [
        *("scheduler=polynomial", "scheduler.kwargs.lr_end=1e-3", "train.learning_rate=5e-4"),
    ],
    "scheduler.kwargs.num_cycels: the schedule cosine has no such argument; it takes num_cycles": [
        "+scheduler.kwargs.num_cycels=2"
    ],
    "the schedule constant has no such argument; it takes none": ["scheduler=constant", "+scheduler.kwargs.power=2"],
    "train.eval_steps=2.5": ["train.eval_steps=2.5"],
    "train.logging_steps=0": ["train.logging_steps=0"],
    "train.early_stopping_patience needs": ["train.early_stopping_patience=2", "train.load_best_model_at_end=false"],
    "eval/loss needs objective.direction=minimize": ["objective.direction=maximize"],
    "eval/nats_per_byte needs objective.direction=minimize": [
        "objective.metric=eval/nats_per_byte",
        "objective.direction=maximize",
    ],
    "needs objective.direction=maximize": ["objective.metric=eval/exact_match"],
    "dataset.verifiable_answers=true": [*FILES, "objective.metric=eval/exact_match", "objective.direction=maximize"],
    "generation.exact_match_rows above 0": [
        *("objective.metric=eval/exact_match/sort", "objective.direction=maximize", "generation.exact_match_rows=0"),
    ],
    "objective.metric=eval/los: not measured; did you mean 'eval/loss'": ["objective.metric=eval/los"],
    "objective.metric=train/loss: not measured": ["objective.metric=train/loss"],
    "eval/exact_match/sorting: not measured; did you mean 'eval/exact_match/sort'": [
        "objective.metric=eval/exact_match/sorting"
    ],
    "model.attn_implementation=spda: no such name; did you mean 'sdpa'": ["model.attn_implementation=spda"],
    "dataset.demo.num_train=many: must be a whole number": ["dataset.demo.num_train=many"],
    "dataset.mixture.one.weight=-1.0: must be at least 0": ["dataset=mixture", "+dataset.mixture.one={weight: -1}"],
    "dataset.mixture.one.columns.promt: no such key; did you mean 'prompt'": [
        "dataset=mixture",
        "+dataset.mixture.one={columns: {promt: question}}",
    ],
    "peft.lora_alpha=0: must be at least 1": ["peft=lora", "peft.lora_alpha=0"],
    "plain text has no assistant turns": [
        "dataset=text",
        "dataset.train_files=[x.jsonl]",
        "dataset.train_on=assistant",
    ],
    "dataset.train_files is empty": ["dataset=messages"],
    "dataset.hub_id is required": ["dataset=hub"],
    "peft=qlora quantises": ["peft=qlora"],
    "train.save_total_limit=0": ["train.save_total_limit=0"],
    "is not a multiple of 3": ["train.effective_batch_size=8", "train.per_device_train_batch_size=3"],
    "train.extra.save_strategy: set train.eval_steps": ["+train.extra.save_strategy=epoch"],
    "train.extra.packing: set dataset.packing": ["+train.extra.packing=true"],
    "train.extra.fsdp: set compute.fsdp": ["+train.extra.fsdp=full_shard"],
    "is not a multiple of 3 (3 devices)": ["train.effective_batch_size=8", "compute.num_devices=3"],
    "compute.isolate=false trains in this process": ["compute.num_devices=2", "compute.isolate=false"],
    "give compute.num_devices above 1": ["compute.fsdp=true"],
    "compute.fsdp=true with peft=qlora is not offered": ["compute.fsdp=true", "compute.num_devices=2", "peft=qlora"],
    "compute.fsdp=true with train.optim=adamw_8bit is not offered": [
        *("compute.fsdp=true", "compute.num_devices=2", "train.optim=adamw_8bit"),
    ],
    "train.optim=adafactor is not offered: use one of adamw_torch_fused": [
        *("compute.fsdp=true", "compute.num_devices=2", "train.optim=adafactor"),
    ],
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_a_contradiction_is_refused_and_its_key_named(said: str) -> None:
    with pytest.raises(ConfigError) as refusal, composed(CONTRADICTIONS[said]) as composition:
        plan_run(composition)
    assert said in str(refusal.value)


def test_all_mistakes_are_shown_at_once() -> None:
    with (
        pytest.raises(ConfigError) as refusal,
        composed(["train.eval_steps=0", "train.weight_decay=-1"]) as composition,
    ):
        plan_run(composition)
    assert len(str(refusal.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("optim", "scheduler", "told"),
    [
        ("adamw_torch", "cosin", "scheduler.name=cosin: no such name; did you mean 'cosine'"),
        ("adam", "cosine", "train.optim=adam: no such name"),
        ("adamw_torch", "reduce_lr_on_plateau", "scheduler.name=reduce_lr_on_plateau: no such name"),
    ],
)
def test_an_optimizer_or_schedule_that_upstream_lacks_is_refused(optim: str, scheduler: str, told: str) -> None:
    (line,) = check_upstream_names(optim, SchedulerConfig(scheduler))
    assert line.startswith(told)


def test_upstream_names_are_those_of_the_installed_enums() -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert upstream_choices("training_args.py", "OptimizerNames") == tuple(name.value for name in OptimizerNames)
    assert upstream_choices("trainer_utils.py", "SchedulerType") == tuple(name.value for name in SchedulerType)
