"""plan.json: every number that was derived for a run, with its reason. The worker completes it.

The worker, the sweep, the reports and the next launch read the same typed ``Plan``; nothing else keeps a copy.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Optional

from sft_experiments.errors import RunFolderError
from sft_experiments.files import read_json, write_json_atomically
from sft_experiments.runs.folder import RunFolder

UNFUSED, FUSED = "adamw_torch", "adamw_torch_fused"  # the same optimizer, by upstream's names
ON, OFF = "on", "off"  # of ``tuning``
TO_THE_END = 1.0  # of ``stop_at``
GENERATION_BATCH = 64


@dataclass(frozen=True)
class Choice:
    """A derived value and why it is what it is."""

    value: str
    reason: str


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step's examples are spread over devices and micro-batches."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_devices: int

    @property
    def effective_batch_size(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_devices


@dataclass(frozen=True)
class StepPlan:
    """How many optimizer steps a run takes."""

    sequences: int  # rows, or packs when the data are packed
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    last_group_examples: int  # examples in the last step of an epoch; equal to the effective batch when it is full
    tokens_per_epoch: int = 0  # 0: not counted yet
    documents: int = 0  # of an epoch

    def examples_per_step(self, batch: BatchPlan) -> float:
        return round(self.documents / max(1, self.sequences) * batch.effective_batch_size, 1)

    def tokens_per_step(self, batch: BatchPlan) -> int:
        return round(self.tokens_per_epoch / max(1, self.sequences) * batch.effective_batch_size)


@dataclass(frozen=True)
class Plan:
    """The derived half of a run. What only the worker can know is None until it does."""

    batch: BatchPlan
    device: Choice
    precision: Choice
    threads: int
    warnings: list[str] = field(default_factory=list)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)  # dial -> {"value", "origin"}
    # what is chosen for the device's sake: "tf32", "fused_optimizer", "dataloader_num_workers", "pinned_memory"
    tuning: dict[str, Choice] = field(default_factory=dict)
    steps: Optional[StepPlan] = None
    attention: Optional[Choice] = None
    loss_head: Optional[Choice] = None
    stop_at: Optional[float] = None  # share of the training after which a sweep stops it; None: it has not said yet
    largest_batch: Optional[int] = None  # per device: what was left when a larger one had not fitted
    largest_eval_batch: Optional[int] = None  # the same in evaluation
    generation_batch: int = GENERATION_BATCH  # prompts that are answered together; fewer where they had not fitted

    def eval_batch(self, wanted: int) -> int:
        """Rows per device that are evaluated together: ``wanted``, or what was left of it."""
        return min(wanted, self.largest_eval_batch or wanted)

    def is_on(self, option: str) -> bool:
        """Whether something of ``tuning`` is used."""
        return option in self.tuning and self.tuning[option].value == ON

    def optimizer(self, configured: str) -> str:
        """Upstream's name for train.optim: the same update, in one kernel where the device has that."""
        return FUSED if configured == UNFUSED and self.is_on("fused_optimizer") else configured

    def as_json(self) -> dict[str, Any]:
        """The content of plan.json, with the products that people look for."""
        content = {name: value for name, value in asdict(self).items() if value is not None}
        content["batch"] = {"effective_batch_size": self.batch.effective_batch_size, **content["batch"]}
        if self.steps is not None:
            content["steps"] |= {
                "examples_per_step": self.steps.examples_per_step(self.batch),
                "tokens_per_step": self.steps.tokens_per_step(self.batch),
                "last_group_is_partial": self.steps.last_group_examples < self.batch.effective_batch_size,
            }
        return content


def write_plan(folder: RunFolder, plan: Plan) -> None:
    """Write plan.json whole or not at all."""
    write_json_atomically(folder.plan, plan.as_json())


def read_plan(folder: RunFolder) -> Plan:
    """The plan of a run folder. Raises ``RunFolderError`` naming the file when it is missing or no plan."""
    content = read_json(folder.plan)
    try:
        return plan_from_json(content)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{folder.plan} is not a plan: {error}") from None


def find_plan(folder: RunFolder) -> Optional[Plan]:
    """The plan of a run folder; None when there is none that can be read."""
    try:
        return read_plan(folder)
    except RunFolderError:
        return None


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """The typed plan of a plan.json, also of one that 0.1.0 wrote."""
    values = {one.name: content[one.name] for one in fields(Plan) if one.name in content}
    if not isinstance(values.get("values", {}), dict):
        raise ValueError(f"values is {values['values']!r}")
    values["batch"] = _take(BatchPlan, content["batch"])
    for name in ("device", "precision", "attention", "loss_head"):
        if name in content:
            values[name] = _take(Choice, content[name])
    values["tuning"] = {name: _take(Choice, choice) for name, choice in content.get("tuning", {}).items()}
    if "steps" in content:
        values["steps"] = _take(StepPlan, content["steps"])
    if "stop_at" in content and content["stop_at"] is None:  # 0.1.0's way to say so
        values["stop_at"] = TO_THE_END
    return Plan(**values)


def _take(kind: Any, content: Mapping[str, Any]) -> Any:
    """A dataclass from the part of a mapping that it knows."""
    return kind(**{one.name: content[one.name] for one in fields(kind) if one.name in content})
