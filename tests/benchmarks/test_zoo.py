"""The table of architectures: what it says of some that differ, and that a silent difference is a fault."""

from typing import Any

import pytest

from benchmarks import zoo


@pytest.mark.parametrize(
    ("model_type", "head", "packing"),
    [
        ("llama", "labelled_rows", "sft_packed"),
        ("granite", "labelled_rows", "sft_packed"),
        ("modernbert-decoder", "own_forward", "sft_packed"),
        ("llama4_text", "own_forward", "refused"),
        ("mamba", "labelled_rows", "refused"),
        ("bloom", "labelled_rows", "refused by its probe"),
    ],
)
def test_an_architecture_is_trained_by_its_own_loss_and_packed_only_apart(
    model_type: str, head: str, packing: str
) -> None:
    outcome = zoo.look_at(model_type)
    assert (outcome.head, outcome.packing, outcome.fault) == (head, packing, "")


def test_a_loss_that_is_not_the_saved_models_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deaf(model: Any, choice: Any) -> Any:
        return choice

    monkeypatch.setattr(zoo, "proven", deaf)
    assert zoo.main(["modernbert-decoder", "llama"]) == 1
    assert "modernbert-decoder: trains" in capsys.readouterr().err


def test_what_cannot_be_built_small_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["reformer"]) == 0
    assert "0 of 1 architectures built small" in capsys.readouterr().out
