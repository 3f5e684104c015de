"""Weights & Biases: one run per trial, offline by itself when the service cannot be used."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import wandb

from sft_experiments.monitor.trackers.tracker import RunIdentity, Settings
from sft_experiments.monitor.trackers.wandb_mode import choose_mode
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import EVAL_LOSS, NOTHING_KEPT, Alert, Event, Sample, read_events, read_samples
from sft_experiments.schema import Config, WandbConfig
from sft_experiments.secrets import redact

INIT_SECONDS = 30.0
FLUSH_SECONDS = 1.0  # a killed run keeps all but its last second (W&B's default: 15)
TAGGED = ("model.name", "dataset.name", "scheduler.name", "peft.method")
# What W&B's agent, or a user, sets for one run.
OF_ONE_RUN = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_RESUME")
LONGEST_TAG = 64  # characters; the service refuses longer ones
SAMPLE_COLUMNS = ["step", "prompt_index", "prompt", "answer", "reference", "exact"]
MOST_SAMPLES = 1000  # rows of the table, which is sent whole each time
_EXIT_CODES = {"completed": 0, "pruned": 0}  # else 1: shown as failed


class WandbTracker:
    """Writes ``wandb/`` into the run folder; the same run id after a resume.

    Online, W&B itself goes on with the run. Offline, each attempt is a folder of its own, and a killed one lacks its
    last moments and may hold steps that are trained again. So a resumed attempt tells again what its trial has
    measured, from metrics.jsonl, and sets the earlier folders aside: one upload, every step once, in order.
    """

    name = "wandb"
    job_type = "train"

    def __init__(self, config: WandbConfig, folder: Path, finish_seconds: float) -> None:
        self.notes: list[str] = []
        self._config = config
        self._folder = folder
        self._finish_seconds = finish_seconds
        self._rows: list[list[Any]] = []
        self._is_online = False

    def start(self, identity: RunIdentity, settings: Settings) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # its login speaks before it reads the settings below
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # sending telemetry delays the exit by up to 10 s
        if identity.sweep:
            self._leave_other_run()
        mode, reason = choose_mode(self._config.mode)
        resumed = identity.resumed_step != NOTHING_KEPT
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            id=identity.trial_id,
            name=(not identity.sweep and os.environ.get("WANDB_NAME")) or identity.label,
            group=os.environ.get("WANDB_RUN_GROUP") or identity.sweep or identity.name,
            job_type=self.job_type,
            tags=_tags(redact(self._config.tags), settings),
            config={**settings, "fingerprints": identity.fingerprints},
            dir=self._folder,
            mode=mode,
            resume="allow" if resumed and mode == "online" else None,
            settings=self._settings(),
        )
        for pattern in ("train/*", "eval/*", "memory/*", "tokens", "epoch"):
            self._run.define_metric(pattern, step_metric="step")
        if mode == "offline":
            self.notes.append(f"wandb is offline ({reason}); upload with: {_sync_command(self._run)}")
            if resumed and _set_earlier_attempts_aside(Path(self._run.dir).parent):
                self._tell_again(RunFolder(self._folder), identity.resumed_step)
        self._is_online = mode == "online"

    def _leave_other_run(self) -> None:
        """The trials of a sweep are runs of their own; W&B would make all of them the run of an agent around them."""
        if left := [name for name in OF_ONE_RUN if os.environ.pop(name, None)]:
            self.notes.append(f"wandb: {', '.join(left)} not used: it names one run, and each trial is one")

    def _tell_again(self, folder: RunFolder, last_step: int) -> None:
        samples: dict[int, list[Sample]] = {}
        for sample in read_samples(folder.samples):
            samples.setdefault(sample.step, []).append(sample)
        for event in read_events(folder.metrics):
            if event["step"] <= last_step:
                self.log(event)
                if EVAL_LOSS in event and (told := samples.pop(int(event["step"]), None)):
                    self.samples(told)

    def log(self, event: Event) -> None:
        self._run.log(event, step=int(event["step"]))

    def alert(self, alert: Alert) -> None:
        level = "ERROR" if alert.policy == "stop" else "WARN"
        self._run.alert(title=alert.rule, text=alert.message, level=level, wait_duration=0)

    def samples(self, samples: list[Sample]) -> None:
        self._rows += [_row(sample) for sample in samples]
        table = wandb.Table(columns=SAMPLE_COLUMNS, data=self._rows[-MOST_SAMPLES:])
        self._run.log({"samples": table}, step=samples[-1].step)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._run.summary.update({**summary, "status": status})
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=_EXIT_CODES.get(status, 1))

    def abandon(self) -> None:
        """End W&B's service process: it would keep this one waiting at exit. What it wrote can still be synced."""
        if self._is_online:  # else it is offline, or did not get that far
            self.notes.append(f"wandb: upload what is missing with: {_sync_command(self._run)} --include-online")
        for child in psutil.Process().children():
            if child.name().startswith("wandb-core"):
                child.kill()
        wandb.teardown()  # raises, since the service is gone, but first takes its own exit hook away

    def _settings(self) -> Any:
        """Quiet, without the command line (it may hold secrets), and with our deadlines."""
        settings = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "save_code": False,
            "x_disable_meta": True,
            "init_timeout": INIT_SECONDS,
            "finish_timeout": max(1.0, 0.8 * self._finish_seconds),
            "x_transaction_log_flush_interval": FLUSH_SECONDS,
        }
        # The private ones come and go between versions; without them only their comfort is missing.
        known = wandb.Settings.model_fields
        return wandb.Settings(**{name: value for name, value in settings.items() if name in known})


def build(config: Config, folder: RunFolder) -> WandbTracker:
    """For the register."""
    return WandbTracker(config.logger.wandb, folder.wandb, config.logger.finish_seconds)


def _tags(tags: list[str], settings: Settings) -> list[str]:
    found = [str(settings[key]) for key in TAGGED if settings.get(key) not in (None, "", "none")]
    return [tag[:LONGEST_TAG] for tag in dict.fromkeys([*tags, *found])]


def _set_earlier_attempts_aside(current: Path) -> bool:
    """Move the folders of a trial's earlier attempts into ``earlier/``; not when W&B has (some of) them already."""
    attempts = [path for path in current.parent.glob("*run-*") if path.is_dir() and not path.is_symlink()]
    earlier = [path for path in attempts if path.name != current.name]
    if any(not path.name.startswith("offline-") or list(path.glob("*.synced")) for path in earlier):
        return False
    aside = current.parent / "earlier"
    aside.mkdir(exist_ok=True)
    for path in earlier:
        path.rename(aside / path.name)
    return True


def _sync_command(run: Any) -> str:
    """The folders of this trial that W&B does not have: they have one run id, and it uploads them in order.

    W&B may have chosen another folder than ours (its temporary one, when ours cannot be written).
    """
    folder = Path(run.dir).parents[1]  # .../wandb/offline-run-<time>-<id>/files
    return f"wandb sync {shlex.quote(str(folder))}/*run-*"


def _row(sample: Sample) -> list[Any]:
    prompt = "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in sample.prompt)
    return [sample.step, sample.prompt_index, prompt, sample.answer, sample.reference, sample.exact]
