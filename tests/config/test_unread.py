"""No key is accepted and not read: typed, or in a file of the user's, it is refused where it would change nothing."""

from pathlib import Path

import pytest

from sft_experiments.commands import run
from sft_experiments.config.hydra import composed
from sft_experiments.config.validate import package_of, upstream_choices
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import Trial, plan_run
from sft_experiments.plan.machine import installed
from sft_experiments.schema import WITHOUT_EPSILON, WITHOUT_MOMENTS

# Typed -> what is said of it.
IDLE = {
    (
        "scheduler=constant",
        "scheduler.warmup_ratio=0.1",
    ): "scheduler.warmup_ratio: nothing reads it with scheduler",
    ("scheduler=constant", "scheduler.warmup_steps=5"): "scheduler=constant_with_warmup has a warmup",
    ("scheduler.warmup_steps=5", "scheduler.warmup_ratio=0.1"): "it is read with scheduler.warmup_steps=null",
    ("train={max_steps: 5, num_train_epochs: 2}",): "train.num_train_epochs: nothing reads it with train.max_steps=5",
    ("dataset.columns.prompt=question",): "dataset.columns.prompt: nothing reads it with dataset.source=demo",
    ("+dataset.role_names.human=user",): "dataset=<file>",
    ("dataset.format=alpaca",): "dataset.format: nothing reads it",
    ("dataset.weight=2",): "dataset.weight: nothing reads it",
    ("dataset.validation_fraction=0.2",): "dataset.validation_fraction: nothing reads it with dataset.source=demo",
    (
        *("dataset=messages", "dataset.train_files=[rows.jsonl]", "dataset.validation_files=[rows.jsonl]"),
        "dataset.validation_fraction=0.2",
    ): "dataset.validation_fraction: nothing reads it with dataset.validation_files=",
    (
        *("dataset=messages", "dataset.train_files=[rows.jsonl]"),
        "generation.exact_match_rows=5",
    ): "dataset.verifiable_answers=true measures it",
    ("train.optim=sgd", "train.adam_beta1=0.8"): "train.adam_beta1: nothing reads it with train.optim=sgd",
    ("train.optim=lion_8bit", "train.adam_epsilon=1e-6"): "train.adam_epsilon: nothing reads it",
    (
        "train.learning_rate=1e-3",
        "peft=lora",
        "peft.learning_rate_factor=3",
    ): "the values that follow from it are",
    ("model.recommended.learning_rates=[1e-3]",): "model.recommended.learning_rates: nothing reads it",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def planned(*settings: str) -> Trial:
    with composed(list(settings)) as composition:
        return plan_run(composition)


@pytest.mark.parametrize("settings", IDLE, ids=lambda settings: settings[-1])
def test_what_is_typed_and_would_change_nothing_is_refused(here: Path, settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refusal:
        planned(*settings)
    assert IDLE[settings] in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


def test_what_is_typed_and_is_so_anyway_passes(here: Path) -> None:
    planned("scheduler=constant", "scheduler.warmup_ratio=0")
    files = ["dataset=messages", "dataset.train_files=[rows.jsonl]", "dataset.validation_files=[rows.jsonl]"]
    planned(*files, "dataset.validation_fraction=0", "generation.exact_match_rows=0")


def test_a_sweep_in_which_some_cell_reads_the_key_takes_it(here: Path) -> None:
    assert run("plan", ["scheduler=constant,cosine", "scheduler.warmup_ratio=0.2", "--json"]) == 0
    with pytest.raises(ConfigError, match="nothing reads it with"):
        run("plan", ["train.optim=sgd,rmsprop", "train.adam_beta1=0.8"])


def write_option(folder: Path, name: str, text: str) -> list[str]:
    file = folder / "mine" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return ["--config-dir", "mine"]


def test_what_a_file_of_the_users_sets_in_vain_is_refused_with_the_file(here: Path) -> None:
    flags = write_option(here, "dataset/own", "defaults:\n  - demo\ntrain_files: [rows.jsonl]\n")
    with pytest.raises(ConfigError, match=r"dataset/own\.yaml: dataset\.train_files: nothing reads it with"):
        planned(*flags, "dataset=own")
    flags = write_option(here, "experiment/e", "# @package _global_\npeft:\n  r: 4\n")
    with pytest.raises(ConfigError, match=r"experiment/e\.yaml: peft\.r: nothing reads it with peft\.method=none"):
        planned(*flags, "experiment=e")
    with pytest.raises(ConfigError, match=r"experiment/e\.yaml"):
        run("plan", [*flags, "experiment=e", "train.learning_rate=1e-3,2e-3"])


def test_what_is_typed_may_overrule_a_file(here: Path) -> None:
    flags = write_option(
        here,
        "experiment/e",
        "# @package _global_\ndefaults:\n  - override /peft: lora\npeft:\n  r: 4\ntrain:\n  num_train_epochs: 1\n",
    )
    assert planned(*flags, "experiment=e").config.peft.r == 4
    assert planned(*flags, "experiment=e", "peft=none").config.peft.method.value == "none"
    assert planned(*flags, "experiment=e", "train.max_steps=3").config.train.max_steps == 3


def test_a_size_class_that_is_typed_gives_its_values(here: Path) -> None:
    values = planned("model=qwen3_4b", "model.size_class=7b_13b").plan.values
    assert values["train.learning_rate"] == {"value": 2e-5, "origin": "model size class 7b_13b"}
    values = planned("model.recommended.weight_decay=0.3").plan.values
    assert values["train.weight_decay"] == {"value": 0.3, "origin": "command line (model.recommended.weight_decay)"}


def test_the_range_of_the_size_class_of_any_model_can_be_searched(here: Path) -> None:
    assert run("plan", ["model=hub", "model.name=Qwen/Qwen3-4B", "model.size_class=7b_13b", "sweep=random"]) == 0


@pytest.mark.slow
def test_what_is_said_of_optimizers_is_what_transformers_does() -> None:
    """Which of them need a package, and to which the settings of Adam are not handed."""
    import torch
    from transformers import Trainer, TrainingArguments

    def handed(optim: str, **changed: float) -> str:
        arguments = TrainingArguments(optim=optim, optim_target_modules=["x"], **changed)
        return repr(Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(2, 2))[1])

    judged = 0
    for optim in upstream_choices("training_args.py", "OptimizerNames"):
        needed = package_of(optim)
        is_here = needed is None or installed(needed[0])
        try:
            plain = handed(optim)
        except (ImportError, ValueError) as error:
            assert not is_here, f"{optim}: {error}"
            continue
        assert is_here, f"{optim} works without {needed}"
        judged += 1
        assert (handed(optim, adam_beta1=0.5) == plain) is (optim in WITHOUT_MOMENTS), optim
        assert (handed(optim, adam_epsilon=1e-3) == plain) is (optim in WITHOUT_EPSILON), optim
    assert judged > 15
