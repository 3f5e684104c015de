import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sft_experiments.results.collect import Collection
from sft_experiments.results.rank import compare_runs
from sft_experiments.results.recipes import again_command, reproduce_command, sweep_command, train_command, use_command
from tests.results.sweep_factory import make_run


@pytest.mark.parametrize(
    "value",
    [2e-5, 32, "cosine", "Qwen/Qwen3-0.6B", "a,b", "two words", "it's", "x=1", "back\\slash", True, None, "[x]"],
)
def test_values_come_back_from_the_shell_and_hydra_as_they_were(value: Any) -> None:
    words = shlex.split(train_command(make_run(Path("sweep"), 1e-3, 8, 0.5), {"train.optim": value}))
    (override,) = OverridesParser.create().parse_overrides([words[-1]])
    assert override.value() == value


def test_changed_keys_replace_what_was_typed_before() -> None:
    overrides = ["model=tiny", "train.learning_rate=1", "sweep.num_seeds=2", "train.seed=7"]
    run = make_run(Path("sweep"), 1e-3, 8, 0.5, overrides=overrides)
    comparison = compare_runs(Collection([run], []))
    command = sweep_command(comparison, run, {"train.learning_rate": [1e-3, 2e-3]}, num_seeds=3)
    assert command == (
        "sft train -m model=tiny train.learning_rate=1e-3,2e-3 train.effective_batch_size=8 sweep.num_seeds=3"
    )


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        (["sweep=optuna", "sweep.num_trials=8", "sweep.search_seed=1"], {"search": "bayes"}),
        (["sweep=random", "sweep.num_trials=8"], {"search": "random"}),
        (["sweep=asha", "sweep.rungs=[0.5]"], {"search": "grid", "early_stopping": "asha"}),
    ],
)
def test_seeds_for_the_best_of_a_search_are_a_grid(typed: list[str], settings: dict[str, str]) -> None:
    run = make_run(Path("sweep"), 1e-3, 8, 0.5, overrides=["model=tiny", *typed])
    run.record.config["sweep"] = settings
    command = sweep_command(compare_runs(Collection([run], [])), run, {"train.learning_rate": [1e-3]}, num_seeds=3)
    assert command == (
        "sft sweep sweep=none model=tiny train.learning_rate=1e-3 train.effective_batch_size=8 sweep.num_seeds=3"
    )


def test_a_run_without_a_recorded_command_is_reproduced_from_its_folder() -> None:
    run = make_run(Path("two words"), 1e-3, 8, 0.5, command=None)
    assert shlex.split(reproduce_command(run))[:3] == ["sft", "train", "--from"]
    assert shlex.split(again_command(run))[3] == str(run.folder.path)


def test_a_kept_model_is_exported_and_only_a_dropped_one_is_trained_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1e-3, 8, 0.5)
    assert use_command(run) == again_command(run)
    run.folder.model.mkdir(parents=True)
    (run.folder.model / "adapter_config.json").touch()
    assert shlex.split(use_command(run)) == ["sft", "export", str(run.folder.path), "my-model"]


def test_a_launch_that_named_no_sweep_gets_no_default_grid_beside_its_own_axes() -> None:
    run = make_run(Path("sweep"), 1e-3, 8, 0.5, axes={"peft": "lora", "train": {"weight_decay": 0.1}})
    comparison = compare_runs(Collection([run], []))
    assert sweep_command(comparison, run, {}) == (
        "sft train -m model=tiny dataset=demo peft=lora 'train={weight_decay: 0.1}'"
    )
    run.record.overrides.append("sweep=lr_x_batch")
    assert sweep_command(comparison, run, {}).startswith("sft sweep model=tiny dataset=demo sweep=lr_x_batch ")
