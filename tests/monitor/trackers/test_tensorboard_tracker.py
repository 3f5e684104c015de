"""What TensorBoard reads back: scalars on two axes, texts, and the HParams plugin's own view of a sweep."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from sft_experiments.monitor.trackers.tensorboard_tracker import TensorBoardTracker
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.runs.metrics import Alert, Sample

SETTINGS = {"model.name": "tiny", "train.effective_batch_size": 32, "train.seed": 1, "scheduler.warmup_ratio": None}


def write_run(folder: Path, rate: float, status: str = "completed", loss: float = 0.5) -> None:
    tracker = TensorBoardTracker(folder)
    identity = RunIdentity(f"id{rate}", "grid", f"lr={rate}", "grid", {"train.learning_rate": rate})
    tracker.start(identity, {**SETTINGS, "train.learning_rate": rate})
    for step in (10, 20):
        axes = {"step": step, "tokens": 100 * step, "epoch": step / 20, "time": 1.0}
        tracker.log({**axes, "train/loss": 3 / step, "train/learning_rate": rate})
        tracker.log({**axes, "eval/loss": loss})
    tracker.alert(Alert("loss_spike", "warn", 10, "train/loss jumped"))
    tracker.samples([Sample(20, 0, [{"role": "user", "content": "2+2?"}], "4\n<b>", "4", True)])
    tracker.finish(status, {"best/eval/loss": loss, "best/step": 20, "eval/loss": loss, "name": "text"})


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def test_scalars_have_our_names_and_steps(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3)
    events = read(tmp_path)
    assert {"train/loss", "train/learning_rate", "eval/loss", "tokens", "best/eval/loss"} <= set(events.scalars.Keys())
    assert [(point.step, round(point.value, 4)) for point in events.Scalars("train/loss")] == [(10, 0.3), (20, 0.15)]


def test_losses_are_also_against_tokens(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3)
    events = read(tmp_path / "by_tokens")
    assert [point.step for point in events.Scalars("by_tokens/train/loss")] == [1000, 2000]
    assert [point.step for point in events.Scalars("by_tokens/eval/loss")] == [1000, 2000]


def test_alerts_and_samples_are_texts(tmp_path: Path) -> None:
    write_run(tmp_path, 1e-3)
    events = read(tmp_path)
    tags = set(events.tensors.Keys())
    assert {"alerts/loss_spike/text_summary", "samples/0/text_summary", "config/text_summary"} <= tags
    (sample,) = events.Tensors("samples/0/text_summary")
    text = sample.tensor_proto.string_val[0].decode()
    assert sample.step == 20
    assert "2+2?" in text and "    <b>" in text


def session_groups(sweep: Path) -> list[Any]:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(sweep))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(sweep))
    context = backend_context.Context(_TBContext(provider))
    status = [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN]
    tags = ("best/eval/loss", "eval/loss")
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=status,
        include_metrics=True,
        col_params=[api_pb2.ColParams(metric=api_pb2.MetricName(tag=tag)) for tag in tags],
    )
    handler = list_session_groups.Handler(RequestContext(), context, "", request)
    return list(handler.run().session_groups)


class _TBContext:
    def __init__(self, provider: MultiplexerDataProvider) -> None:
        self.data_provider = provider
        self.multiplexer = None
        self.logdir = ""


def test_the_hparams_plugin_compares_the_trials_of_a_sweep(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "tensorboard", 1e-3, loss=0.7)
    write_run(tmp_path / "b" / "tensorboard", 2e-3, loss=0.5)
    write_run(tmp_path / "c" / "tensorboard", 9e-1, status="diverged", loss=8.0)
    groups = session_groups(tmp_path)
    rates = sorted(group.hparams["train.learning_rate"].number_value for group in groups)
    assert rates == pytest.approx([1e-3, 2e-3, 9e-1])
    by_rate = {round(group.hparams["train.learning_rate"].number_value, 3): group for group in groups}
    (metric,) = [value for value in by_rate[0.002].metric_values if value.name.tag == "best/eval/loss"]
    assert metric.value == pytest.approx(0.5)
    assert set(groups[0].hparams) == {"train.learning_rate"}  # what differs
    statuses = {rate: group.sessions[0].status for rate, group in by_rate.items()}
    assert statuses == {
        0.001: api_pb2.STATUS_SUCCESS,
        0.002: api_pb2.STATUS_SUCCESS,
        0.9: api_pb2.STATUS_FAILURE,
    }


def test_a_run_that_was_killed_has_its_row(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path / "a" / "tensorboard")
    tracker.start(RunIdentity("x", "grid", "lr"), SETTINGS)
    (group,) = session_groups(tmp_path)  # nothing was finished or closed
    assert group.hparams["model.name"].string_value == "tiny"
    assert group.sessions[0].status == api_pb2.STATUS_UNKNOWN


def test_a_resumed_run_replaces_the_steps_that_it_trains_again(tmp_path: Path) -> None:
    first = TensorBoardTracker(tmp_path)
    first.start(RunIdentity("x", "grid", "lr"), SETTINGS)
    for step in (10, 20, 30):
        first.log({"step": step, "tokens": 7 * step, "epoch": 0, "time": 0, "train/loss": 1.0})
    first._writer.close()  # killed at step 30; the last checkpoint was at 20
    first._by_tokens.close()
    resumed = TensorBoardTracker(tmp_path)
    resumed.start(RunIdentity("x", "grid", "lr", resumed_step=20), SETTINGS)
    for step in (30, 40):
        resumed.log({"step": step, "tokens": 7 * step, "epoch": 0, "time": 0, "train/loss": 2.0})
    resumed.finish("completed", {})
    expected = [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert [(point.step, point.value) for point in read(tmp_path).Scalars("train/loss")] == expected
    by_tokens = read(tmp_path / "by_tokens").Scalars("by_tokens/train/loss")
    assert [(point.step, point.value) for point in by_tokens] == [(7 * step, loss) for step, loss in expected]
