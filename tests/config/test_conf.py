"""Every option of every group composes into a checked config, and the sizes choose the table's values."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from sft_experiments.config.hydra import conf_dir, register
from sft_experiments.config.load import to_config
from sft_experiments.config.validate import check_config
from sft_experiments.schema import Config
from sft_experiments.values import scaled

# What an option needs that only its user knows.
FILE = f"[{Path(__file__)}]"  # any file that exists: nothing is read here
NEEDED = {
    "model/hub": ["model.name=somebody/some-model-7B"],
    "dataset/hub": ["dataset.hub_id=somebody/rows"],
    "peft/qlora": ["model=qwen3_1_7b"],
    "experiment/llama3_1_8b_tutorial": [f"dataset.train_files={FILE}"],
    **{
        f"dataset/{name}": [f"dataset.train_files={FILE}"]
        for name in ("alpaca", "messages", "prompt_completion", "sharegpt", "text")
    },
    "dataset/mixture": ["+dataset.mixture.one={source: demo, format: messages, weight: 1.0, train_split: train}"],
}
BUILDING_BLOCKS = ("base", "size")


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("config", overrides=list(overrides))


def options() -> list[str]:
    files = sorted(conf_dir().glob("*/*.yaml"))
    return [f"{file.parent.name}/{file.stem}" for file in files if file.parent.name not in BUILDING_BLOCKS]


@pytest.mark.parametrize("option", options())
def test_every_option_composes_and_passes_the_checks(option: str) -> None:
    group, name = option.split("/")
    config = to_config(composed(f"{group}={name}", *NEEDED.get(option, [])))
    check_config(config)
    assert isinstance(config, Config)


def test_every_group_of_the_user_has_options() -> None:
    groups = {option.split("/")[0] for option in options()}
    assert {"model", "dataset", "scheduler", "logger", "train", "peft", "compute", "sweep", "experiment"} <= groups


# The table of recommended ranges by model size (spec of the project, section 2).
TABLE = {
    "1b_3b": {"learning_rate": (5e-5, 1e-4), "effective_batch_size": (16, 32), "num_train_epochs": (3, 5),
              "warmup_ratio": (0.05, 0.1), "weight_decay": (0.01, 0.1)},
    "7b_13b": {"learning_rate": (1e-5, 5e-5), "effective_batch_size": (32, 64), "num_train_epochs": (2, 3),
               "warmup_ratio": (0.03, 0.1), "weight_decay": (0.01, 0.01)},
    "30b_70b": {"learning_rate": (5e-6, 2e-5), "effective_batch_size": (64, 128), "num_train_epochs": (1, 2),
                "warmup_ratio": (0.03, 0.05), "weight_decay": (0.01, 0.01)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "size"), [("qwen3_1_7b", "1b_3b"), ("llama3_1_8b", "7b_13b"), ("llama3_3_70b", "30b_70b")]
)
def test_choosing_a_model_chooses_the_tables_values_and_grid(model: str, size: str) -> None:
    config = to_config(composed(f"model={model}", "sweep=lr_x_batch"))
    for key, (low, high) in TABLE[size].items():
        assert getattr(config.model.recommended, f"{key}_range") == pytest.approx([low, high])
    assert TABLE[size]["learning_rate"][0] <= config.train.learning_rate <= TABLE[size]["learning_rate"][1]
    assert config.train.max_grad_norm == 1.0
    assert config.scheduler.name == "cosine"
    assert config.sweep.axes["train.learning_rate"] == config.model.recommended.learning_rates
    assert config.sweep.axes["train.effective_batch_size"] == config.model.recommended.effective_batch_sizes


def test_any_model_of_the_hub_gets_the_values_of_its_size() -> None:
    config = to_config(composed("model=hub", "model.name=somebody/some-model-7B"))
    assert config.train.learning_rate == 2e-5
    assert config.train.effective_batch_size == 32


def test_the_command_line_wins_over_the_size() -> None:
    config = to_config(composed("model=llama3_1_8b", "train.learning_rate=3e-6"))
    assert config.train.learning_rate == 3e-6


def test_lora_gets_ten_times_the_learning_rate_also_in_the_grid() -> None:
    config = to_config(composed("model=llama3_1_8b", "peft=lora", "sweep=lr_x_batch"))
    assert config.train.learning_rate == 2e-4
    assert config.sweep.axes["train.learning_rate"] == [1e-4, 2e-4, 5e-4]


def test_the_tutorial_experiment_is_what_it_says() -> None:
    config = to_config(composed("experiment=llama3_1_8b_tutorial"))
    train, scheduler, dataset = config.train, config.scheduler, config.dataset
    assert config.model.name == "meta-llama/Llama-3.1-8B-Instruct"
    assert (train.per_device_train_batch_size, train.effective_batch_size) == (4, 32)
    assert (train.learning_rate, train.weight_decay, train.max_grad_norm) == (2e-5, 0.01, 1.0)
    assert (scheduler.name, scheduler.warmup_ratio, train.num_train_epochs) == ("cosine", 0.1, 3)
    assert (dataset.max_length, dataset.packing.value) == (2048, "bfd")
    assert (train.logging_steps, train.eval_steps, train.save_total_limit) == (10, 100, 3)
    assert (train.seed, train.data_seed) == (42, 42)


def test_a_default_stands_in_one_place() -> None:
    """The schema holds no values beside "nothing": those of conf/ are the only ones."""
    defaults = OmegaConf.to_container(OmegaConf.structured(Config))
    allowed = {None, "???", False, 1.0}
    stack = [("", defaults)]
    while stack:
        path, node = stack.pop()
        assert isinstance(node, dict)
        for key, value in node.items():
            if isinstance(value, dict):
                stack.append((f"{path}{key!s}.", value))
            elif not isinstance(value, list):
                assert value in allowed, f"{path}{key!s}={value} has a default in schema.py"


def test_scaling_leaves_no_binary_dust() -> None:
    assert scaled([1e-5, 2e-5, 5e-5], 10.0) == [1e-4, 2e-4, 5e-4]


def test_own_configs_are_found_with_config_dir(sft, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "small.yaml").write_text("defaults: [tiny]\nname: small\n")
    (tmp_path / "mine" / "model" / "typo.yaml").write_text("defaults: [tiny]\nnmae: small\n")
    assert "name: small" in sft("train", "--config-dir", "mine", "model=small", "--cfg", "job").stdout
    wrong = sft("train", "--config-dir", "mine", "model=typo", "--cfg", "job")
    assert wrong.returncode == 2
    assert "typo.yaml" in wrong.stderr
    assert "nmae: no such key; did you mean 'model.name'" in wrong.stderr
