"""TensorBoard: scalars against steps and tokens, texts, and one row per trial in the HParams tab."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from sft_experiments.monitor.trackers.tracker import RunIdentity, Settings
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import EVAL_LOSS, NOTHING_KEPT, Alert, Event, Sample, Shown, measurements, shown_in
from sft_experiments.schema import Config

HPARAMS = (
    "model.name",
    "dataset.name",
    "scheduler.name",
    "train.effective_batch_size",
    "train.learning_rate",
)
"""Columns of the HParams tab for a run without sweep axes. A sweep shows its axes: the tab selects five columns by
the alphabet, and the whole config is in the Text tab."""


_STATUS = {"completed": "STATUS_SUCCESS", "pruned": "STATUS_SUCCESS", "preempted": "STATUS_RUNNING"}  # else failure


class TensorBoardTracker:
    """Writes event files into the run folder; ``tensorboard --logdir`` on the sweep folder compares all trials."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self._folder = folder
        self._last_step = 0
        self._newest: Event = {}
        self._by_tokens: Any = None

    def start(self, identity: RunIdentity, settings: Settings) -> None:
        purge = None if identity.resumed_step == NOTHING_KEPT else identity.resumed_step + 1
        self._writer: Any = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=10)
        self._resumed = purge is not None
        for summary in _session_start(identity, settings):
            _add_summary(self._writer, summary)
        self._writer.add_text("config", _table(settings), 0)
        self._writer.flush()  # a killed run still has its row

    def log(self, event: Event) -> None:
        step = self._last_step = int(event["step"])
        self._newest |= event
        for name, value in measurements(event).items():
            self._writer.add_scalar(name, value, step)
        self._writer.add_scalar("tokens", event["tokens"], step)
        for metric in shown_in(Shown.by_tokens):
            if metric.name in event:
                tokens = int(event["tokens"])
                self._against_tokens(tokens).add_scalar(f"by_tokens/{metric.name}", event[metric.name], tokens)

    def alert(self, alert: Alert) -> None:
        self._writer.add_text(f"alerts/{alert.rule}", f"**{alert.policy}** {alert.message}", alert.step)
        self._writer.flush()

    def samples(self, samples: list[Sample]) -> None:
        for sample in samples:
            self._writer.add_text(f"samples/{sample.prompt_index}", _sample_text(sample), sample.step)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        for name in _hparam_metrics():
            if isinstance(value := summary.get(name), int | float) and value != self._newest.get(name):
                self._writer.add_scalar(name, value, self._last_step)
        _add_summary(self._writer, _session_end(status))
        self._writer.close()
        if self._by_tokens is not None:
            self._by_tokens.close()

    def abandon(self) -> None:
        """Nothing to do: the writer's threads are daemons."""

    def _against_tokens(self, tokens: int) -> Any:
        """A run of its own beside the first, since a resume drops points by step. What it repeats goes here too."""
        if self._by_tokens is None:
            purge = tokens if self._resumed else None
            self._by_tokens = SummaryWriter(str(self._folder / "by_tokens"), purge_step=purge, flush_secs=10)
        return self._by_tokens


def build(config: Config, folder: RunFolder) -> TensorBoardTracker:
    """For the register."""
    return TensorBoardTracker(folder.tensorboard)


def _hparam_metrics() -> list[str]:
    """Columns of the HParams tab: the best checkpoint's loss first."""
    return [f"best/{EVAL_LOSS}", "best/step", *(metric.name for metric in shown_in(Shown.hparams))]


def _add_summary(writer: Any, summary: Any) -> None:
    """Into the run's own file: ``SummaryWriter.add_hparams`` would start a second run."""
    writer._get_file_writer().add_summary(summary)


def _session_start(identity: RunIdentity, settings: Settings) -> list[Any]:
    """Summaries for the HParams plugin, written by hand: torch's ``hparams`` cannot say when and how a run ended."""
    start = plugin_data_pb2.SessionStartInfo(group_name=identity.trial_id, start_time_secs=time.time())
    experiment = api_pb2.Experiment(
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in _hparam_metrics()]
    )
    for name in identity.axes or HPARAMS:
        value = identity.axes.get(name, settings.get(name))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        start.hparams[name].CopyFrom(_as_value(value))
        kind = api_pb2.DATA_TYPE_FLOAT64 if is_number else api_pb2.DATA_TYPE_STRING
        experiment.hparam_infos.append(api_pb2.HParamInfo(name=name, type=kind))
    return [
        _plugin_summary(metadata.EXPERIMENT_TAG, experiment=experiment),
        _plugin_summary(metadata.SESSION_START_INFO_TAG, session_start_info=start),
    ]


def _session_end(status: str) -> Any:
    code = api_pb2.Status.Value(_STATUS.get(status, "STATUS_FAILURE"))
    end = plugin_data_pb2.SessionEndInfo(status=code, end_time_secs=time.time())
    return _plugin_summary(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _plugin_summary(tag: str, **content: Any) -> Any:
    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])


def _as_value(value: Any) -> Any:
    if isinstance(value, bool | str) or value is None:
        return struct_pb2.Value(string_value="" if value is None else str(value))
    if isinstance(value, int | float):
        return struct_pb2.Value(number_value=value)
    return struct_pb2.Value(string_value=str(value))


def _table(settings: Settings) -> str:
    """The config as a markdown table."""
    rows = [f"| {key} | `{value}` |" for key, value in settings.items()]
    return "\n".join(["| key | value |", "|---|---|", *rows])


def _sample_text(sample: Sample) -> str:
    """One generation as markdown; indented lines are shown as they are."""
    turns = [(str(turn.get("role")), str(turn.get("content"))) for turn in sample.prompt]
    turns.append(("answer", sample.answer))
    if sample.reference is not None:
        turns.append(("reference", sample.reference))
    return "\n\n".join(f"**{who}**\n\n" + "\n".join(f"    {line}" for line in text.split("\n")) for who, text in turns)
