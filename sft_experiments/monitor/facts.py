"""What is known about a run before it starts, and what its health is judged against."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunFacts:
    """Everything but ``total_steps`` may be unknown (None): rules and metrics that need it stay silent."""

    total_steps: int
    warmup_steps: int = 0
    planned_learning_rates: Sequence[float] | None = None  # of optimizer step 1, 2, ...
    flops_per_token: float | None = None  # forward and backward, of one trained token
    peak_flops: float | None = None  # per second, of all devices together, in the training precision
    memory_gib: float | None = None  # of the device, else of the host
