"""A cell that differs from another in values only is put together without Hydra, and is the same as with it."""

from omegaconf import OmegaConf

from sft_experiments.compose import from_plain, to_config, to_plain
from sft_experiments.composition import composed
from sft_experiments.sweep.cells import compose_cell

CELLS = [
    ["train.learning_rate=1e-4", "train.effective_batch_size=16"],
    ["model=llama3_1_8b", "train.learning_rate=1e-4", "dataset.max_length=99"],
    ["scheduler=linear", "scheduler.warmup_steps=3", "name=x", "model.recommended.learning_rate=7e-4"],
    ["peft=lora", "dataset.demo.num_train=10", "logger.trackers=[wandb]"],
    ["+train.extra.bf16_full_eval=true", "train.seed=3"],
]


def test_the_shortcut_gives_what_hydra_gives() -> None:
    for overrides in CELLS:
        with composed(["-m", *overrides]) as composition:
            quick = compose_cell(composition.context, composition.master, overrides)
            slow = composition.context.config_loader.load_sweep_config(composition.master, overrides)
            assert to_config(quick) == to_config(slow)
            assert quick.hydra.runtime.choices == slow.hydra.runtime.choices


def test_a_config_read_from_its_typed_groups_equals_one_read_through_the_schema() -> None:
    with composed(["peft=lora", "scheduler.warmup_steps=3"]) as composition:
        ours = OmegaConf.masked_copy(composition.master, [key for key in composition.master if key != "hydra"])
        plain = OmegaConf.to_container(ours, resolve=True)
        assert isinstance(plain, dict)
        config = to_config(composition.master)
        assert config == from_plain({str(key): value for key, value in plain.items()})
        assert from_plain(to_plain(config)) == config
