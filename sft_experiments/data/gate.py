"""The gate: counts what is wrong with the rows, keeps the first offenders, and applies each rule's policy.

Faults are collected over all rows before anything is refused, so one run of the gate shows everything there is to fix.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sft_experiments.data.conversation import Origin
from sft_experiments.data.rules import MEANINGS, resolve_policies
from sft_experiments.errors import DataError
from sft_experiments.schema import Policy

MAX_EXAMPLES = 3  # offending rows kept per rule and split


@dataclass
class Finding:
    """How often one rule was broken in one split."""

    rule: str
    split: str
    policy: Policy
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)  # (file:row, what)

    def as_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "meaning": MEANINGS[self.rule],
            "split": self.split,
            "policy": self.policy.value,
            "count": self.count,
            "examples": [f"{where}: {what}" for where, what in self.examples],
        }

    def __str__(self) -> str:
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        places: dict[str, list[str]] = {}
        for where, what in self.examples:
            places.setdefault(what, []).append(where)
        said = "; ".join(f"{', '.join(where)}: {what}" for what, where in places.items())
        return f"{self.split}: {rows}: {MEANINGS[self.rule]} ({self.rule}): {said}"


class Gate:
    """Collects faults and answers whether a faulty row stays."""

    def __init__(self, rules: Mapping[str, Policy]) -> None:
        self.policies = resolve_policies(rules)
        self._findings: dict[tuple[str, str, Policy], Finding] = {}

    def report(self, rule: str, split: str, origin: Origin, what: str) -> bool:
        """Count one fault. True: the row stays; False: it is left out."""
        policy = self.policies[rule]
        if policy is Policy.ignore:
            return True
        self.count(rule, split, origin, what, policy)
        return policy is Policy.warn

    def reject(self, rule: str, split: str, origin: Origin, what: str) -> None:
        """Count one row that cannot stay whatever the policy: there is nothing to train on."""
        refuse = self.policies[rule] is Policy.error
        self.count(rule, split, origin, what, Policy.error if refuse else Policy.drop)

    def count(self, rule: str, split: str, origin: Origin, what: str, policy: Policy) -> None:
        """Count one fault whose policy another key decides (``dataset.overlong``)."""
        finding = self._findings.setdefault((rule, split, policy), Finding(rule, split, policy))
        finding.count += 1
        if len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append((str(origin), what))

    def findings(self) -> list[Finding]:
        """Errors first, then drops, then warnings; the most frequent first."""
        severity = [Policy.error, Policy.drop, Policy.warn, Policy.ignore]
        return sorted(self._findings.values(), key=lambda finding: (severity.index(finding.policy), -finding.count))

    def dropped(self, split: str) -> int:
        """Rows of a split left out so far."""
        return sum(self.dropped_by_rule(split).values())

    def dropped_by_rule(self, split: str) -> dict[str, int]:
        """Rule -> rows of a split left out so far."""
        return {f.rule: f.count for f in self.findings() if f.split == split and f.policy is Policy.drop}

    def refuse_errors(self) -> None:
        """Raise ``DataError`` with every finding whose policy is error."""
        errors = [finding for finding in self.findings() if finding.policy is Policy.error]
        if errors:
            settings = dict.fromkeys(f"dataset.rules.{finding.rule}=drop" for finding in errors)
            advice = f"Correct the data, or leave such rows out: {' '.join(settings)}"
            raise DataError("\n".join([*map(str, errors), advice]))

    def refuse_drops(self, split: str, num_kept: int, max_drop_fraction: float, advice: str) -> None:
        """Raise ``DataError`` with the causes when more than ``max_drop_fraction`` of a split's rows were left out."""
        dropped = self.dropped(split)
        num_rows = num_kept + dropped
        if dropped <= max_drop_fraction * num_rows:
            return
        causes = [f for f in self.findings() if f.split == split and f.policy is Policy.drop]
        raise DataError(
            f"{split}: {dropped} of {num_rows} rows ({dropped / num_rows:.0%}) would be dropped, more than "
            f"dataset.max_drop_fraction={max_drop_fraction:g}\n" + "\n".join(map(str, causes)) + advice
        )
