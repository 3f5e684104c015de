"""Watch the event stream with the configured rules, and fold what they say into alerts."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from sft_experiments.errors import ConfigError, nearest
from sft_experiments.monitor.rules import (
    EvalLossRising,
    GradNormHigh,
    GradNormLow,
    LearningRate,
    LossNotDecreasing,
    LossSpike,
    MemoryGrowth,
    MemoryLimit,
    NotFinite,
    Rule,
    RunFacts,
    ThroughputDrop,
    TrainEvalGap,
    UnchangedWeights,
    ZeroLoss,
)
from sft_experiments.runs.metrics import Alert, Event
from sft_experiments.schema import HealthPolicy, HealthRuleConfig

RuleFactory = Callable[[float, int, RunFacts], Rule]
RULES: dict[str, RuleFactory] = {
    "not_finite": NotFinite,
    "zero_loss": ZeroLoss,
    "unchanged_weights": UnchangedWeights,
    "loss_spike": LossSpike,
    "loss_not_decreasing": LossNotDecreasing,
    "train_eval_gap": TrainEvalGap,
    "eval_loss_rising": EvalLossRising,
    "learning_rate": LearningRate,
    "grad_norm_high": GradNormHigh,
    "grad_norm_low": GradNormLow,
    "throughput_drop": ThroughputDrop,
    "memory_limit": MemoryLimit,
    "memory_growth": MemoryGrowth,
}


NO_THRESHOLD = ("not_finite", "zero_loss")
NO_WINDOW = ("not_finite", "learning_rate", "memory_limit")
OUTSIDE = ("stalled",)
"""Signs that no event can show; see stall.py."""


class Health:
    """All rules of a run. Raises ``ConfigError`` for a rule that does not exist or lacks a value."""

    def __init__(self, configured: dict[str, HealthRuleConfig], facts: RunFacts) -> None:
        check_rules(configured)
        self.alerts: dict[str, Alert] = {}
        self._policies = {name: config.policy for name, config in configured.items()}
        self._rules = {
            name: RULES[name](config.threshold or 0.0, config.window or 1, facts)
            for name, config in configured.items()
            if name in RULES and config.policy is not HealthPolicy.ignore
        }

    def observe(self, event: Event) -> list[Alert]:
        """Show an event to every rule; returns the alerts to tell now (repeated ones at the 10th, 100th, ... time)."""
        found = [(name, rule.observe(event)) for name, rule in self._rules.items()]
        raised = [self.report(name, int(event["step"]), message) for name, message in found if message]
        return [alert for alert in raised if alert and _is_told(alert.count)]

    def report(self, rule: str, step: int, message: str) -> Alert | None:
        """Fold a sign into the alerts of this run: one per rule, with a count and the latest message.

        None when the rule is ignored.
        """
        policy = self._policies.get(rule, HealthPolicy.warn)
        if policy is HealthPolicy.ignore:
            return None
        if earlier := self.alerts.get(rule):
            self.alerts[rule] = replace(earlier, message=message, count=earlier.count + 1, last_step=step)
        else:
            self.alerts[rule] = Alert(rule, policy.value, step, message, last_step=step)
        return self.alerts[rule]

    def records(self) -> list[dict[str, Any]]:
        """The alerts for record.json, in the order in which they first appeared."""
        return [asdict(alert) for alert in self.alerts.values()]


def check_rules(configured: dict[str, HealthRuleConfig]) -> None:
    """Raise ``ConfigError`` for a rule that does not exist, or a policy that cannot be kept."""
    known = [*RULES, *OUTSIDE]
    for name, config in configured.items():
        if name not in known:
            raise ConfigError(f"monitor.rules: {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
        if name in OUTSIDE and config.policy is HealthPolicy.stop:
            raise ConfigError(
                f"monitor.rules.{name}.policy=stop: a trainer that hangs cannot be asked to stop; use warn, and"
                " sweep.timeout_seconds to end such trials"
            )
        if name in RULES and config.policy is not HealthPolicy.ignore:
            _check_values(name, config)


def _check_values(name: str, config: HealthRuleConfig) -> None:
    if name not in NO_THRESHOLD and (config.threshold is None or config.threshold < 0):
        raise ConfigError(f"monitor.rules.{name}.threshold={config.threshold}: must be a number, 0 or more")
    if name not in NO_WINDOW and (config.window is None or config.window < 1):
        raise ConfigError(f"monitor.rules.{name}.window={config.window}: must be a whole number, 1 or more")


def _is_told(count: int) -> bool:
    """1, 10, 100, ...: enough to know that it goes on, without a flood."""
    return str(count).strip("0") == "1"
