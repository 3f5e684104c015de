"""What the plan chose for the device's sake reaches upstream under its names."""

from dataclasses import fields

from trl import SFTConfig

from sft_experiments.runs.plan_file import BatchPlan, Choice, Plan
from sft_experiments.training.arguments import _tuning


def plan(**tuning: str) -> Plan:
    chosen = {name: Choice(value, "a test") for name, value in tuning.items()}
    return Plan(BatchPlan(1, 1, 1), Choice("cuda", ""), Choice("bf16", ""), 1, tuning=chosen)


def test_all_that_a_gpu_has_is_passed_on() -> None:
    values = _tuning(
        "adamw_torch", plan(tf32="on", fused_optimizer="on", pinned_memory="on", dataloader_num_workers="2")
    )
    assert values == {
        "optim": "adamw_torch_fused",
        "tf32": True,
        "dataloader_pin_memory": True,
        "accelerator_config": {"non_blocking": True},
        "dataloader_num_workers": 2,
        "dataloader_persistent_workers": True,
    }
    assert set(values) <= {field.name for field in fields(SFTConfig)}


def test_what_is_off_or_not_there_is_not() -> None:
    values = _tuning("adafactor", plan(fused_optimizer="on", tf32="off"))
    assert (values["optim"], values["tf32"], values["dataloader_num_workers"]) == ("adafactor", False, 0)
    assert _tuning("adamw_torch", plan())["tf32"] is None
    assert "accelerator_config" not in values
