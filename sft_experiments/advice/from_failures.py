"""Advice when no run completed: what the failures have in common."""

from collections import Counter

from sft_experiments.advice.evidence import HIGH, MEDIUM, Advice
from sft_experiments.results.rank import Comparison
from sft_experiments.results.recipes import train_command
from sft_experiments.runs.record import Phase, Status


def all_failed(comparison: Comparison) -> Advice | None:
    """One piece of advice for the commonest class of failure; None when nothing failed."""
    failed = [run for run in comparison.unranked if run.record.status.is_failure]
    if not failed:
        return None
    status, count = Counter(run.record.status for run in failed).most_common(1)[0]
    first = next(run for run in failed if run.record.status is status)
    cause = first.record.failure
    evidence = f"{count} of {len(comparison.unranked)} runs: {status.value}."
    evidence += f" The first: {cause.kind}: {' '.join(cause.message.split())}" if cause else ""
    rate = first.values.get("train.learning_rate")
    if status is Status.diverged and isinstance(rate, float):
        lowest = min(run.values["train.learning_rate"] for run in failed if "train.learning_rate" in run.values)
        action, changes = "Divide the lowest learning rate by 3.", {"train.learning_rate": float(f"{lowest / 3:.2g}")}
    elif status is Status.oom and cause is not None and cause.phase in {None, Phase.training.value}:
        action = "Trade time for memory: activation checkpointing, then LoRA, then shorter rows."
        changes = {"train.activation_checkpointing": True}
    else:
        action, changes = "Read the log of the first failure, then run it alone.", {}
    return Advice(
        rule="failures",
        finding="No run completed.",
        evidence=evidence,
        action=action,
        command=train_command(first, changes),
        confidence=MEDIUM if changes else HIGH,
    )
