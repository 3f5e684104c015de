"""What we print for a setting is read back by Hydra as the same value: commands, labels of trials, records."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from sft_experiments.values import as_override

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["cosine", "Qwen/Qwen3-0.6B", "a,b", "two words", "it's", "[x]", "x=1"]),
    st.sampled_from(["true", "null", "1e-3", ".5"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner),
    max_leaves=6,
)


@given(VALUES)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    parsed = OverridesParser.create().parse_override(as_override("train.extra.x", value))
    assert parsed.value() == value
    assert isinstance(parsed.value(), bool | str) == isinstance(
        value, bool | str
    )  # 1.0 may come back as 1, not as true


@given(st.lists(st.floats(min_value=1e-9, max_value=1e9), min_size=2, max_size=5, unique=True))
def test_an_axis_comes_back_with_all_its_digits(values: list[float]) -> None:
    parsed = OverridesParser.create().parse_override(as_override("train.learning_rate", *values))
    assert [float(str(item)) for item in parsed.sweep_iterator()] == values
