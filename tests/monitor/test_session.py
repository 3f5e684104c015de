"""One run watched from beginning to end, as the trainer's callback does it."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sft_experiments.errors import ConfigError, TrainingFailed
from sft_experiments.monitor.rules import RunFacts
from sft_experiments.monitor.session import Monitor, StallWatch
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import Sample, read_events, read_samples
from sft_experiments.schema import HealthPolicy, TerminalMode
from tests.monitor.conftest import run_config

FACTS = RunFacts(total_steps=10, flops_per_token=100.0, peak_flops=1e6)


@pytest.fixture(autouse=True)
def no_watch_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    started: list[StallWatch] = []
    start = StallWatch.start

    def remembered(watch: StallWatch) -> None:
        started.append(watch)
        start(watch)

    monkeypatch.setattr(StallWatch, "start", remembered)
    yield
    for watch in started:
        watch.stop()


def train(monitor: Monitor, model: torch.nn.Module, steps: range, loss: float = 1.0) -> None:
    """What the trainer does: steps, a log event after each, an evaluation after every fifth."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor.train_begin(model, tokens=100 * (steps[0] - 1))
    for step in steps:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        monitor.step_end(step)
        logs = {"loss": loss / step, "grad_norm": 1.0, "num_tokens": 100 * step, "num_supervised_tokens": 40}
        monitor.log(step, step / 10, logs)
        monitor.pause_end()
        if step % 5 == 0:
            monitor.log(
                step, step / 10, {"eval_loss": loss / step + 0.05, "eval_runtime": 0.5, "num_tokens": 100 * step}
            )
            monitor.samples([Sample(step, 0, [], "4")])
            monitor.pause_end()


def test_events_have_the_documented_names(folder: RunFolder, identity: RunIdentity) -> None:
    monitor = Monitor(run_config(), folder, identity, FACTS)
    train(monitor, torch.nn.Linear(4, 1), range(1, 6))
    assert monitor.finish("completed", {}) == []
    *trained, evaluated = read_events(folder.metrics)
    assert set(trained[-1]) >= {
        *("step", "tokens", "epoch", "time", "train/loss", "train/grad_norm", "train/step_seconds"),
        *("train/tokens_per_second", "train/supervised_tokens_per_second", "train/mfu", "memory/host_rss_gib"),
    }
    assert set(evaluated) == {"step", "tokens", "epoch", "time", "eval/loss", "eval/seconds", "eval/train_gap"}
    assert evaluated["eval/train_gap"] == pytest.approx(0.05)
    assert trained[-1]["tokens"] == evaluated["tokens"] == 500
    ratio = trained[-1]["train/supervised_tokens_per_second"] / trained[-1]["train/tokens_per_second"]
    assert ratio == pytest.approx(0.4)
    assert trained[-1]["train/mfu"] == pytest.approx(trained[-1]["train/tokens_per_second"] * 100 / 1e6)


def test_speed_leaves_out_evaluations(folder: RunFolder, identity: RunIdentity) -> None:
    monitor = Monitor(run_config(), folder, identity, FACTS)
    monitor.train_begin(torch.nn.Linear(1, 1), 0)
    for step in (1, 2):
        time.sleep(0.05)
        monitor.step_end(step)
        monitor.log(step, 0.1, {"loss": 1.0, "num_tokens": 100 * step})
        time.sleep(0.5)  # evaluates
        monitor.pause_end()
    monitor.finish("completed", {})
    for event in read_events(folder.metrics):
        assert 0.05 <= event["train/step_seconds"] < 0.5
        assert event["train/tokens_per_second"] == pytest.approx(100 / event["train/step_seconds"])
    seconds = sum(event["train/step_seconds"] for event in read_events(folder.metrics))
    assert monitor.summary() == {"train/tokens_per_second": pytest.approx(200 / seconds)}


def test_a_resumed_run_goes_on_where_the_checkpoint_was(folder: RunFolder, identity: RunIdentity) -> None:
    model = torch.nn.Linear(4, 1)
    first = Monitor(run_config(), folder, identity, FACTS)
    train(first, model, range(1, 8))  # killed at step 7; the checkpoint was written at step 5
    resumed = Monitor(run_config(), folder, dataclasses.replace(identity, resumed_step=5), FACTS)
    resumed.log(5, 0.5, {"eval_loss": 0.25})  # the checkpoint is evaluated once more
    train(resumed, model, range(6, 11))
    resumed.finish("completed", {})
    events = read_events(folder.metrics)
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert [event["tokens"] for event in events] == sorted(event["tokens"] for event in events)
    assert [sample.step for sample in read_samples(folder.samples)] == [5, 10]


def test_rules_remember_what_happened_before_a_resume(folder: RunFolder, identity: RunIdentity) -> None:
    def log_norms(monitor: Monitor, steps: range) -> None:
        for step in steps:
            monitor.log(step, 0.1, {"loss": 1.0, "grad_norm": 50.0})

    log_norms(Monitor(run_config(), folder, identity, FACTS), range(1, 3))
    resumed = Monitor(run_config(), folder, dataclasses.replace(identity, resumed_step=2), FACTS)
    log_norms(resumed, range(3, 4))  # the third in a row
    assert [alert["rule"] for alert in resumed.alerts()] == ["grad_norm_high"]


def test_an_alert_reaches_terminal_record_and_trackers(
    folder: RunFolder, identity: RunIdentity, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = Monitor(run_config("tensorboard"), folder, identity, FACTS)
    train(monitor, torch.nn.Linear(4, 1), range(1, 6), loss=float("nan"))
    monitor.finish("diverged", {})
    assert "STOP not_finite at step 1: train/loss is not finite" in capsys.readouterr().out
    assert monitor.alerts()[0]["rule"] == "not_finite"
    assert monitor.stopped is not None and monitor.stopped.rule == "not_finite"
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert "alerts/not_finite/text_summary" in events.Tags()["tensors"]


def test_a_warning_does_not_stop(folder: RunFolder, identity: RunIdentity) -> None:
    config = run_config()
    config.monitor.rules["not_finite"].policy = HealthPolicy.warn
    monitor = Monitor(config, folder, identity, FACTS)
    train(monitor, torch.nn.Linear(4, 1), range(1, 3), loss=float("nan"))
    assert monitor.stopped is None
    assert monitor.alerts()[0]["count"] == 2


def test_frozen_weights_are_noticed(folder: RunFolder, identity: RunIdentity) -> None:
    monitor = Monitor(run_config(), folder, identity, FACTS)
    model = torch.nn.Linear(4, 1)
    monitor.train_begin(model, 0)
    for step in range(1, 11):
        monitor.step_end(step)
        monitor.log(step, 0.1, {"loss": 1.0 / step})
    assert [alert["rule"] for alert in monitor.alerts()] == ["unchanged_weights"]


def test_a_stall_is_reported_with_all_stacks(
    folder: RunFolder, identity: RunIdentity, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config()
    config.monitor.stall_seconds = 0.2
    monitor = Monitor(config, folder, identity, FACTS)
    monitor.train_begin(torch.nn.Linear(1, 1), 0)
    monitor.step_end(1)
    waits_for_a_lock_that_never_opens()
    monitor.finish("killed", {})
    (alert,) = monitor.alerts()
    assert (alert["rule"], alert["step"], alert["count"]) == ("stalled", 1, 1)
    assert "waits_for_a_lock_that_never_opens" in (folder.path / "stacks.txt").read_text()
    assert "WARNING stalled at step 1" in capsys.readouterr().out


def waits_for_a_lock_that_never_opens() -> None:
    time.sleep(1.0)


def test_what_is_logged_after_training_is_not_an_event(folder: RunFolder, identity: RunIdentity) -> None:
    monitor = Monitor(run_config(), folder, identity, FACTS)
    train(monitor, torch.nn.Linear(4, 1), range(1, 6))
    monitor.train_end()
    monitor.samples([Sample(5, 0, [], "again")])
    monitor.finish("completed", {})
    assert len(read_samples(folder.samples)) == 1


def test_finishing_twice_does_nothing(folder: RunFolder, identity: RunIdentity) -> None:
    monitor = Monitor(run_config("tensorboard"), folder, identity, FACTS)
    monitor.finish("completed", {})
    assert monitor.finish("failed", {}) == []


def test_a_quiet_run_prints_alerts_only(
    folder: RunFolder, identity: RunIdentity, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config()
    config.monitor.terminal = TerminalMode.quiet
    monitor = Monitor(config, folder, identity, FACTS)
    train(monitor, torch.nn.Linear(4, 1), range(1, 6))
    assert capsys.readouterr().out == ""
    monitor.log(6, 0.6, {"loss": float("inf")})
    assert capsys.readouterr().out.startswith("STOP not_finite")


def test_mistakes_in_the_config_are_found_before_anything_is_written(folder: RunFolder, identity: RunIdentity) -> None:
    config: Any = run_config("tensorbord")
    with pytest.raises(ConfigError, match="tensorbord"):
        Monitor(config, folder, identity, FACTS)
    assert list(folder.path.iterdir()) == []


def test_a_divergence_found_before_the_step_becomes_an_alert_and_the_status(
    folder: RunFolder, identity: RunIdentity
) -> None:
    monitor = Monitor(run_config(), folder, identity, FACTS)
    train(monitor, torch.nn.Linear(4, 1), range(1, 5))
    with pytest.raises(TrainingFailed):
        fail_in_step(monitor)
    (alert,) = monitor.alerts()
    assert (alert["rule"], alert["step"]) == ("not_finite", 5)
    assert alert["message"] == "gradient norm nan at step 5"


def fail_in_step(monitor: Monitor) -> None:
    """As in the worker: the error passes through a finally."""
    try:
        raise TrainingFailed("gradient norm nan at step 5", "diverged")
    finally:
        monitor.finish("failed", {})
