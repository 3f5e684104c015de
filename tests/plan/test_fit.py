"""The largest batch that fits a GPU is taken, and what would make a run fit is said."""

from pathlib import Path
from typing import Any

import pytest

from sft_experiments.config.hydra import composed
from sft_experiments.launch.trial import Trial, plan_run
from sft_experiments.models.shape import shape_of
from sft_experiments.plan import derive
from sft_experiments.plan.memory import estimate_memory
from sft_experiments.values import GIB
from tests.plan.fake_nvml import Card

LORA_8B = [
    "model=llama3_1_8b", "peft=lora", "train.activation_checkpointing=true", "train.effective_batch_size=48",
    "dataset=messages", "dataset.train_files=[rows.jsonl]", "dataset.max_length=2048",
]  # fmt: skip


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_gpus: Any) -> Any:
    """A machine with one GPU, as far as the driver tells; there is none where these tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("{}\n")

    def plan(memory_gib: float, *overrides: str) -> Trial:
        on_gpus(Card("GPU-a", total=memory_gib))
        with composed([*LORA_8B, *overrides]) as composition:
            return plan_run(composition)

    return plan


@pytest.mark.parametrize(("settings", "expected"), [([], "fits"), (["peft=none"], "will not fit")])
def test_the_70b_example_of_the_documents_fits_as_it_stands_there(
    settings: list[str], expected: str, on_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (example,) = [line for line in document.splitlines() if line.startswith("sft ") and "llama3_3_70b" in line]
    monkeypatch.setattr(derive, "check_device_count", lambda *_: None)
    trial = on_gpu(80, *example.removesuffix(" ...").split()[2:], "train.effective_batch_size=64", *settings)
    shape = shape_of(trial.config.model)
    assert shape is not None
    estimate = estimate_memory(shape, derive.workload(trial.config, trial.plan, None))
    assert derive.verdict(estimate, 80 * GIB) == expected


def test_auto_takes_the_largest_batch_that_fits(on_gpu: Any) -> None:
    chosen = {}
    for memory in (64, 80, 140):
        trial = on_gpu(memory)
        shape = shape_of(trial.config.model)
        assert shape is not None
        batch = trial.plan.batch
        chosen[memory] = batch.per_device_train_batch_size
        assert batch.effective_batch_size == 48
        estimate = estimate_memory(shape, derive.workload(trial.config, trial.plan, None))
        assert chosen[memory] == 1 or estimate.total <= derive.TIGHT * memory * GIB
    assert chosen[64] <= chosen[80] <= chosen[140]
    assert chosen[64] < chosen[140]


def test_a_batch_set_by_hand_is_left_alone(on_gpu: Any) -> None:
    assert on_gpu(24, "train.per_device_train_batch_size=16").plan.batch.per_device_train_batch_size == 16


def test_what_would_make_it_fit_ends_with_the_first_setting_that_does(on_gpu: Any) -> None:
    trial = on_gpu(80, "peft=none", "train.activation_checkpointing=false")
    shape = shape_of(trial.config.model)
    assert shape is not None
    advice = derive.make_it_fit(trial.config, trial.plan, None, shape, 80 * GIB)
    assert [line.split(":")[0] for line in advice][-1] == "peft=lora"
    hopeless = derive.make_it_fit(trial.config, trial.plan, None, shape, 2 * GIB)
    assert hopeless[-1] == "none of these fits one such device"
