"""Every warning sign is noticed when it is there, and only then."""

import copy
import random

import pytest

from sft_experiments.errors import ConfigError
from sft_experiments.monitor.health import RULES, Health
from sft_experiments.monitor.rules import RunFacts
from sft_experiments.schema import HealthPolicy, HealthRuleConfig
from tests.monitor.conftest import shipped_monitor
from tests.monitor.streams import (
    FACTS,
    FAULTS,
    Stream,
    gap_opens_while_both_fall,
    healthy_stream,
    recordings,
    shares_the_machine,
    trains,
)


def judged(stream: Stream, facts: RunFacts = FACTS) -> Health:
    health = Health(shipped_monitor().rules, facts)
    for event in stream:
        health.observe(event)
    return health


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, seed: int) -> None:
    plant, rule = FAULTS[fault]
    stream = healthy_stream(seed)
    plant(stream, random.Random(seed))
    assert rule in judged(stream).alerts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_into_a_recorded_run_is_noticed(fault: str, seed: int) -> None:
    plant, rule = FAULTS[fault]
    run = recordings()[3 * seed]
    plant(run.stream, random.Random(seed))
    assert rule in judged(run.stream, run.facts).alerts


def test_recorded_healthy_runs_raise_no_alarm() -> None:
    runs = recordings()
    assert len(runs) >= 20
    assert {run.name: judged(run.stream, run.facts).records() for run in runs} == {run.name: [] for run in runs}


@pytest.mark.parametrize("seed", range(100))
def test_a_healthy_stream_raises_no_alarm(seed: int) -> None:
    assert judged(healthy_stream(seed)).records() == []


def test_a_growing_gap_is_no_overfitting_while_the_eval_loss_falls() -> None:
    stream = healthy_stream(0)
    gap_opens_while_both_fall(stream)
    assert "train_eval_gap" not in judged(stream).alerts


@pytest.mark.parametrize("seed", range(5))
def test_a_neighbour_on_the_machine_is_no_alarm(seed: int) -> None:
    stream = healthy_stream(seed)
    shares_the_machine(stream, random.Random(seed))
    assert judged(stream).records() == []


def test_nan_is_noticed_at_its_own_event_and_asks_to_stop() -> None:
    stream = healthy_stream(0)
    event = trains(stream)[20]
    event["train/loss"] = float("nan")
    alert = judged(stream).alerts["not_finite"]
    assert (alert.step, alert.policy, alert.count) == (event["step"], "stop", 1)


def test_a_fault_is_noticed_within_its_window() -> None:
    stream = healthy_stream(1)
    started = trains(stream)[len(trains(stream)) // 2]["step"]
    FAULTS["exploding gradient"][0](stream, random.Random(1))
    assert judged(stream).alerts["grad_norm_high"].step == started + 2 * 6  # the third event in a row


def test_repeated_alerts_are_folded_and_told_at_powers_of_ten() -> None:
    health = Health(shipped_monitor().rules, FACTS)
    told = []
    for step in range(1, 151):
        told += health.observe({"step": step, "tokens": 0, "epoch": 0, "time": 0, "train/grad_norm": 50.0})
    assert [alert.count for alert in told] == [1, 10, 100]
    (record,) = health.records()
    assert record["rule"] == "grad_norm_high"
    assert (record["step"], record["last_step"], record["count"]) == (3, 150, 148)


def test_a_repeated_alert_tells_the_latest_numbers() -> None:
    health = Health(shipped_monitor().rules, FACTS)
    told = []
    for step in range(1, 13):
        told += health.observe({"step": step, "tokens": 0, "epoch": 0, "time": 0, "train/grad_norm": 50.0 + step})
    assert "gradient norm is 53," in told[0].message
    assert (told[1].last_step, told[1].count) == (12, 10)
    assert "gradient norm is 62," in told[1].message


def test_an_ignored_rule_stays_silent() -> None:
    rules = shipped_monitor().rules
    rules["grad_norm_high"].policy = HealthPolicy.ignore
    health = Health(rules, FACTS)
    for step in range(1, 20):
        health.observe({"step": step, "tokens": 0, "epoch": 0, "time": 0, "train/grad_norm": 50.0})
    assert health.records() == []


def test_thresholds_and_windows_come_from_the_config() -> None:
    health = Health({"grad_norm_high": HealthRuleConfig(HealthPolicy.stop, threshold=1.0, window=1)}, FACTS)
    (alert,) = health.observe({"step": 1, "tokens": 0, "epoch": 0, "time": 0, "train/grad_norm": 1.5})
    assert alert.policy == "stop"
    assert "above 1" in alert.message


def test_the_planned_schedule_is_compared_step_by_step() -> None:
    rates = [0.0, 1e-3, 2e-3]
    health = Health(shipped_monitor().rules, RunFacts(3, 1, rates))
    for step, rate in enumerate(rates, start=1):
        health.observe({"step": step, "tokens": 0, "epoch": 0, "time": 0, "train/learning_rate": rate})
    assert health.records() == []
    health.observe({"step": 3, "tokens": 0, "epoch": 0, "time": 0, "train/learning_rate": 2.1e-3})
    assert health.records()[0]["rule"] == "learning_rate"


def test_unknown_facts_silence_the_rules_that_need_them() -> None:
    stream = copy.deepcopy(healthy_stream(0))
    for fault in ("wrong schedule", "full memory"):
        FAULTS[fault][0](stream, random.Random(0))
    assert judged(stream, RunFacts(total_steps=300)).records() == []


def test_every_rule_has_shipped_settings() -> None:
    assert set(RULES) | {"stalled"} == set(shipped_monitor().rules)


def test_a_mistyped_rule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'loss_spikes' is not one of .*did you mean 'loss_spike'"):
        Health({"loss_spikes": HealthRuleConfig(HealthPolicy.warn)}, FACTS)


def test_a_policy_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stalled\.policy=stop"):
        Health({"stalled": HealthRuleConfig(HealthPolicy.stop)}, FACTS)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (HealthRuleConfig(HealthPolicy.warn, window=5), r"loss_spike\.threshold=None: must be a number"),
        (HealthRuleConfig(HealthPolicy.warn, threshold=8.0), r"loss_spike\.window=None: must be a whole number"),
        (HealthRuleConfig(HealthPolicy.warn, threshold=8.0, window=0), r"loss_spike\.window=0: must be a whole number"),
    ],
)
def test_a_rule_without_the_values_it_needs_is_refused(rule: HealthRuleConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Health({"loss_spike": rule}, FACTS)
