"""A cell that differs from another in values only is put together without Hydra, and is the same as with it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sft_experiments.config.hydra import composed
from sft_experiments.config.load import from_plain, to_config, to_plain
from sft_experiments.errors import ConfigError
from sft_experiments.sweep.cells import expand
from sft_experiments.sweep.planning import plan_sweep

CELLS = [
    ["train.learning_rate=1e-4", "train.effective_batch_size=16"],
    ["model=llama3_1_8b", "train.learning_rate=1e-4", "dataset.max_length=99"],
    ["scheduler=linear", "scheduler.warmup_steps=3", "name=x", "model.recommended.learning_rate=7e-4"],
    ["peft=lora", "dataset.demo.num_train=10", "logger.trackers=[wandb]"],
    ["+train.extra.bf16_full_eval=true", "train.seed=3"],
]


def test_the_shortcut_gives_what_hydra_gives() -> None:
    for overrides in CELLS:
        with composed(["-m", *overrides]) as composer:
            quick = composer.cell(overrides)
            slow = composer._loader.load_sweep_config(composer.master, overrides)
            assert to_config(quick) == to_config(slow)
            assert quick.hydra.runtime.choices == slow.hydra.runtime.choices


SWEEPS = [
    ["train.learning_rate=1e-4,2e-4", "train.effective_batch_size=4,8"],
    ["scheduler=linear,cosine", "train.seed=1,2"],
    ["peft=lora", "peft.r=4,8", "dataset.demo={num_train: 60}", "name=x"],
    ["sweep=lr_x_batch", "sweep.num_seeds=2", "train.learning_rate=choice(1e-4)", "train.seed=5"],
    ["dataset.demo={num_train: 60}", "dataset.demo.num_train=70,80", "model.config.hidden_size=32"],
    ["+train.extra.bf16_full_eval=true", "train.extra.bf16_full_eval=true,false", "logger=none"],
    ["train.seed=1", "train.seed=2,3", "scheduler=linear", "scheduler=cosine"],
]


@pytest.mark.parametrize("typed", SWEEPS, ids=" ".join)
def test_every_cell_of_a_sweep_is_what_hydra_composes_for_it(typed: list[str]) -> None:
    with composed(["-m", *typed]) as composer:
        cells = list(expand(composer))
        assert len(cells) > 1
        for cell in cells:
            quick = composer.cell(cell.overrides)
            slow = composer._loader.load_sweep_config(composer.master, cell.overrides)
            assert to_config(quick) == to_config(slow)
            assert quick.hydra.runtime.choices == slow.hydra.runtime.choices


def test_a_cell_that_is_put_together_refuses_what_hydra_refuses() -> None:
    for mistake in ("train.learning_rte=1,2", "train.learning_rate=slow,fast"):
        with pytest.raises(ConfigError, match=r"train\.learning_r"), composed(["-m", mistake]) as composer:
            list(expand(composer))


def test_a_config_read_from_its_typed_groups_equals_one_read_through_the_schema() -> None:
    with composed(["peft=lora", "scheduler.warmup_steps=3"]) as composer:
        ours = OmegaConf.masked_copy(composer.master, [str(key) for key in composer.master if key != "hydra"])
        plain = OmegaConf.to_container(ours, resolve=True)
        assert isinstance(plain, dict)
        config = to_config(composer.master)
        assert config == from_plain({str(key): value for key, value in plain.items()})
        assert from_plain(to_plain(config)) == config


def test_seeds_are_counted_up_from_the_one_that_is_typed() -> None:
    with composed(["-m", "sweep.num_seeds=3", "train.seed=5"]) as composer:
        cells = list(expand(composer))
        assert [composer.cell(cell.overrides).train.seed for cell in cells] == [5, 6, 7]
        assert [cell.label() for cell in cells] == ["train.seed=5", "train.seed=6", "train.seed=7"]


def test_seeds_that_are_typed_beside_their_number_are_refused_and_beside_a_group_they_win() -> None:
    told = r"sweep.num_seeds=3: the seeds are typed too .* give one of both"
    with composed(["-m", "sweep.num_seeds=3", "train.seed=1,2"]) as composer, pytest.raises(ConfigError, match=told):
        list(expand(composer))
    with composed(["-m", "sweep=seeds", "train.seed=1,2"]) as composer:
        assert [cell.label() for cell in expand(composer)] == ["train.seed=1", "train.seed=2"]


def test_an_added_key_is_an_axis_like_any_and_keeps_its_sign_in_commands(tmp_path: Path) -> None:
    with composed(["-m", "+train.extra.neftune_noise_alpha=1,5", f"output_dir={tmp_path}"]) as composer:
        _, trials = plan_sweep(composer)
    records = [trial.record for trial in trials.values()]
    assert [record.axes for record in records] == [{"+train.extra.neftune_noise_alpha": value} for value in (1, 5)]
    assert [record.label for record in records] == ["neftune_noise_alpha=1", "neftune_noise_alpha=5"]
    assert records[1].command is not None and records[1].command.endswith(" +train.extra.neftune_noise_alpha=5")
