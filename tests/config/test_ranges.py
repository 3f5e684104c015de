"""Every number of the configuration has a range, and a value outside is refused with the key and what is allowed."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.errors import ConfigError
from sft_experiments.launch.trial import plan_run
from sft_experiments.runs.identity import keys
from sft_experiments.schema import Config


def numbers(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """The keys whose type is, or may be, a number or a list of them."""
    for field in fields(schema):
        kinds: tuple[Any, ...] = get_args(field.type) or (field.type,)
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from numbers(field.type, f"{prefix}{field.name}.")
        elif {int, float} & {*kinds}:
            yield f"{prefix}{field.name}"


def test_every_number_of_the_schema_has_a_range_and_nothing_else_has() -> None:
    judged = {name for name, key in keys().items() if key.within is not None or key.judged_in is not None}
    assert judged == {*numbers()}


OUTSIDE = {
    "train.adam_beta2=1": "train.adam_beta2=1.0: must be at least 0 and below 1",
    "train.adam_epsilon=0": "train.adam_epsilon=0.0: must be a number above 0",
    "train.learning_rate=inf": "train.learning_rate=inf: must be a number above 0",
    "train.logging_steps=nan": "train.logging_steps=nan: must be a number above 0",
    "train.seed=4294967296": "train.seed=4294967296: must be at least 0 and at most 4294967295",
    "train.early_stopping_patience=0": "train.early_stopping_patience=0: must be at least 1, or null",
    "compute.threads=0": "compute.threads=0: must be at least 1, or null",
    "dataset.max_train_rows=0": "dataset.max_train_rows=0: must be at least 1, or null",
    "dataset.demo.num_validation=0": "dataset.demo.num_validation=0: must be at least 7",
    "dataset.max_drop_fraction=1.1": "dataset.max_drop_fraction=1.1: must be at least 0 and at most 1",
    "sweep.keep_models=-2": "sweep.keep_models=-2: must be at least -1",
}


@pytest.mark.parametrize("override", OUTSIDE)
def test_a_number_out_of_range_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as refusal, composed([override]) as composition:
        plan_run(composition)
    assert OUTSIDE[override] in str(refusal.value).splitlines()


@pytest.mark.parametrize("override", ["dataset.max_drop_fraction=1", "train.seed=4294967295", "train.adam_beta1=0"])
def test_the_ends_of_a_range_are_allowed_where_it_says_so(override: str) -> None:
    with composed([override]) as composition:
        plan_run(composition)
