import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sft_experiments.config.load import to_config
from sft_experiments.config.recorded import recorded_run
from sft_experiments.errors import ConfigError, RunFolderError
from sft_experiments.launch.retry import run_trial
from sft_experiments.launch.trial import plan_trial
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import read_record


def test_an_unchanged_record_is_the_same_trial(trained: RunFolder) -> None:
    config, request = recorded_run(trained.path)
    assert plan_trial(config, request).id == read_record(trained).trial_id


@pytest.mark.slow
def test_running_a_record_again_repeats_its_loss_curve_bit_for_bit(trained: RunFolder, tmp_path: Path) -> None:
    config, request = recorded_run(trained.path, [f"output_dir={tmp_path}"])
    again = plan_trial(config, request)
    record = run_trial(again)
    assert record.objective == read_record(trained).objective
    assert _losses(again.folder) == _losses(trained)


def _losses(folder: RunFolder) -> list[tuple[float, float]]:
    from sft_experiments.results.curves import read_curves

    curves = read_curves(folder.metrics)
    return [(point.step, point.value) for name in ("train/loss", "eval/loss") for point in curves.series(name)]


def test_values_can_be_changed(trained: RunFolder) -> None:
    config, request = recorded_run(
        trained.path, ["train.learning_rate=1e-4", "name=final", "+train.extra.neftune_noise_alpha=5"]
    )
    changed = to_config(config)
    assert (changed.train.learning_rate, changed.name) == (1e-4, "final")
    assert changed.train.extra == {"neftune_noise_alpha": 5}
    assert changed.train.max_steps == 8  # as recorded
    assert "name=whole" not in request.overrides
    assert "train.learning_rate=1e-4" in request.overrides


def test_a_group_is_taken_from_todays_conf_with_its_own_overrides(trained: RunFolder) -> None:
    config, _ = recorded_run(trained.path, ["scheduler=linear", "scheduler.warmup_ratio=0.2"])
    changed = to_config(config)
    assert (changed.scheduler.name, changed.scheduler.warmup_ratio) == ("linear", 0.2)
    assert changed.dataset.demo["num_train"] == 200


def test_a_key_that_did_not_exist_when_the_run_was_recorded_gets_todays_default(
    trained: RunFolder, tmp_path: Path
) -> None:
    old = RunFolder(tmp_path / "old")
    shutil.copytree(trained.path, old.path)
    config = OmegaConf.load(old.config)
    del config.compute["fsdp"], config.generation["num_samples"]
    OmegaConf.save(config, old.config)
    config, _ = recorded_run(old.path)
    assert config.compute.fsdp is False and config.generation.num_samples == 8
    assert config.train.max_steps == recorded_run(trained.path)[0].train.max_steps


@pytest.mark.parametrize(
    ("override", "words"),
    [("train.lerning_rate=1", "learning_rate"), ("train.learning_rate=fast", "learning_rate"),
     ("scheduler=cosinus", "cosine"), ("train.seed=1,2", "one value"), ("~train.seed", "one value"),
     ("nonsense", "nonsense"), ("sweep=asha", "sft sweep")],
)  # fmt: skip
def test_a_change_that_cannot_be_is_refused(trained: RunFolder, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recorded_run(trained.path, [override])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=str(tmp_path)):
        recorded_run(tmp_path)
