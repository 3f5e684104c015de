"""A key of a mapping that is ours is checked like a key of the schema, written with or without a plus sign."""

import pytest
from omegaconf import OmegaConf

from sft_experiments.config.hydra import composed, conf_dir
from sft_experiments.config.known_keys import free_mappings
from sft_experiments.data.formats import known_fields
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import plan_run

MISTYPED = {
    "dataset.rules.duplicate_rows=warn": "did you mean 'duplicate_row'",
    "dataset.columns.promt=question": "did you mean 'prompt'",
    "dataset.demo.num_trian=7": "did you mean 'num_train'",
    "monitor.rules.loss_spike.threshhold=3": "did you mean 'threshold'",
    "monitor.rules.foo.policy=warn": "; known: not_finite, zero_loss",
}


@pytest.mark.parametrize("sign", ["", "+"])
@pytest.mark.parametrize("override", MISTYPED)
def test_a_mistyped_key_is_answered_with_the_known_ones(override: str, sign: str) -> None:
    with pytest.raises(ConfigError) as refusal, composed([sign + override]) as composition:
        plan_run(composition)
    assert MISTYPED[override] in str(refusal.value)
    assert "write +" not in str(refusal.value)


def test_only_mappings_of_the_users_own_keys_take_new_ones() -> None:
    own = {"train.extra", "model.config", "scheduler.kwargs", "dataset.role_names", "dataset.mixture", "sweep.axes"}
    assert free_mappings() == own


def test_the_fields_of_a_row_are_those_in_conf() -> None:
    assert {*known_fields()} == {*OmegaConf.load(conf_dir() / "dataset" / "base" / "source.yaml").columns}
