"""One trial before it runs: composed, checked, planned, given its id and folder, each value with its origin."""

import os
import re
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from sft_experiments.config.hydra import Composer, Request, keys_of
from sft_experiments.config.load import load_plugins, to_config, to_plain, write_config
from sft_experiments.config.validate import check_config, check_warmup, unread, unread_in_files, without_reader
from sft_experiments.data.store import HashMemory, dataset_fingerprint, default_cache_dir
from sft_experiments.errors import ConfigError, RunFolderError
from sft_experiments.files import link_tree
from sft_experiments.models.shape import model_config_file
from sft_experiments.plan.arithmetic import schedule_version
from sft_experiments.plan.derive import build_plan
from sft_experiments.runs.folder import RunFolder, find_by_id
from sft_experiments.runs.identity import deciding, key_of
from sft_experiments.runs.plan_file import Plan, write_plan
from sft_experiments.runs.record import Record, Status, read_record, utc_now
from sft_experiments.schema import Config, ModelConfig, ModelSource, PeftMethod
from sft_experiments.secrets import redact, redact_text
from sft_experiments.values import as_override, digest, flatten, format_value, select, sft_command

# The dials that a plan lists, in the order of the table of recommended values.
DIALS = (
    "train.learning_rate",
    "train.effective_batch_size",
    "train.num_train_epochs",
    "train.max_steps",
    "scheduler.name",
    "scheduler.warmup_ratio",
    "scheduler.warmup_steps",
    "train.weight_decay",
    "train.max_grad_norm",
)


def values_with_origin(composed: DictConfig, config: Config, request: Request) -> dict[str, dict[str, Any]]:
    """``{key: {"value", "origin"}}`` for every dial that counts: with ``train.max_steps`` the epochs do not.

    ``config`` is what ``composed`` resolves to.
    """
    raw = {group: OmegaConf.to_container(composed[group], resolve=False) for group in ("train", "scheduler", "logger")}
    typed = {*keys_of(request.overrides)}
    found: dict[str, dict[str, Any]] = {}
    for key in DIALS:
        value = attrgetter(key)(config)
        if value is not None and (key != "train.num_train_epochs" or config.train.max_steps is None):
            origin = (
                _set_by_name(key, typed, request)
                or _recommended(select(raw, key), config, typed)
                or _set_by_group(key, typed, request)
            )
            found[key] = {"value": value, "origin": origin or "default"}
    return found | _of_the_environment(raw["logger"], config)


def _of_the_environment(raw: Any, config: Config) -> dict[str, dict[str, Any]]:
    """The settings of trackers in use that a variable of the environment gives."""
    found, ours = {}, flatten({"logger": to_plain(config)["logger"]})
    for key, text in flatten({"logger": raw}).items():
        variable = re.search(r"\$\{oc\.env:(\w+)", str(text))
        if variable and variable[1] in os.environ and key_of(key).is_read(ours):
            found[key] = {"value": attrgetter(key)(config), "origin": f"environment: {variable[1]}"}
    return found


def _set_by_name(key: str, typed: set[str], request: Request) -> Optional[str]:
    """Who named this very key; None when nobody did."""
    if key in flatten(request.axes):
        return "sweep"
    if key in typed:
        return "command line"
    return _file(request.written.keys.get(key))


def _file(name: Optional[str]) -> Optional[str]:
    """An experiment is called so; another file of the user's by its name."""
    return "experiment" if name and name.startswith("experiment/") else name


def _recommended(raw: Any, config: Config, typed: set[str]) -> Optional[str]:
    """The size class that a value follows; ``raw`` is the value as conf/ has it, before interpolation."""
    source = re.search(r"model\.recommended\.\w+", str(raw))
    if source is None:
        return None
    if source[0] in typed:
        return f"command line ({source[0]})"
    is_scaled = "peft.learning_rate_factor" in str(raw) and config.peft.learning_rate_factor != 1
    return f"model size class {config.model.size_class}" + " x peft.learning_rate_factor" * is_scaled


def _set_by_group(key: str, typed: set[str], request: Request) -> Optional[str]:
    """Who chose the option that the value stands in (``scheduler=linear``); None when nobody did."""
    group = key.split(".")[0]
    if group in request.axes:
        return "sweep"
    if group in typed:
        return "command line"
    return "experiment" if group in request.written.groups else None


LONGEST_LABEL = 80  # characters of a folder name
SUPERSEDED = ".superseded"
# What a record tells of the launch that asked for the run, rather than of its training.
PLACE = ("name", "label", "overrides", "axes", "sweep", "command", "config_dirs", "launched_in")
NOT_TAKEN_OVER = ("checkpoints", "wandb", ".*")  # of a run that is complete elsewhere


@dataclass(frozen=True)
class Trial:
    """A trial that can be run: everything a worker needs is in these fields, and in the folder once written."""

    config: Config
    plan: Plan
    record: Record
    folder: RunFolder
    # Where the same trial is complete, when it was trained under another name or by another sweep.
    elsewhere: Optional[RunFolder] = None

    @property
    def id(self) -> str:
        return self.record.trial_id

    def write(self) -> None:
        """Write config.yaml, plan.json and a pending record that continues an earlier one."""
        earlier = self.recorded()
        if earlier is not None:
            self.record.attempts, self.record.created_at = earlier.attempts, earlier.created_at
            self.record.timings = earlier.timings
            self.record.notes = list(dict.fromkeys([*earlier.notes, *self.record.notes]))
        write_config(self.folder, self.record.config)
        write_plan(self.folder, self.plan)
        self.record.write(self.folder)

    def start_over(self) -> None:
        """For rerun=true: move what an earlier launch left into a hidden folder beside it. Nothing is overwritten."""
        if self.config.rerun and self.folder.record.is_file():
            kept = self.folder.path.parent / SUPERSEDED
            kept.mkdir(exist_ok=True)
            number = sum(1 for _ in kept.glob(f"*{self.id}.*")) + 1
            self.folder.path.rename(kept / f"{self.folder.path.name}.{number}")

    def recorded(self) -> Optional[Record]:
        """What an earlier launch of the same trial left, if anything; under another name, when it is complete."""
        if self.folder.record.is_file():
            return read_record(self.folder)
        return read_record(self.elsewhere) if self.elsewhere else None

    def take_over(self) -> None:
        """Of a trial that is complete elsewhere, make a run folder here: all but its checkpoints and its W&B run."""
        if self.elsewhere is None or self.folder.record.is_file():
            return
        record, placed = read_record(self.elsewhere), self.record
        link_tree(self.elsewhere.path, self.folder.path, without=NOT_TAKEN_OVER)
        record.notes.append(f"not trained here: it was complete in {self.elsewhere.path}")
        replace(record, **{name: getattr(placed, name) for name in PLACE}).write(self.folder)

    def needs_running(self, retry_failed: bool) -> bool:
        """In a sweep, completed trials never run again; failed ones only when asked; all others go on."""
        earlier = self.recorded()
        if earlier is None or self.config.rerun:
            return True
        return not earlier.status.is_final or (earlier.status.is_failure and retry_failed)


def plan_trial(composed: DictConfig, request: Request) -> Trial:
    """Check a composed config, derive its plan and its id. Raises ``ConfigError`` or ``DataError``; writes nothing."""
    config = to_config(composed)
    load_plugins(config.plugins)
    check_config(config)
    check_warmup(config)
    if request.root is None:  # a sweep looks at all its cells
        typed = keys_of(request.overrides)
        idle = [*unread(config, typed), *without_reader(composed, typed)]
        if mistakes := [*idle, *unread_in_files(config, request.written.keys, typed)]:
            raise ConfigError("\n".join(mistakes))
    plan = build_plan(config, request.concurrent_trials)
    content = fingerprints(config)
    identity, earlier = (trial_id(config, plan, content, before) for before in (False, True))
    plan = replace(plan, values=values_with_origin(composed, config, request))
    label = label_of(request.axes)
    record = Record(
        trial_id=identity,
        name=config.name,
        label=label,
        status=Status.pending,
        created_at=utc_now(),
        overrides=redact(request.overrides),
        axes=request.axes,
        sweep=request.root.name if request.root else None,
        command=redact_text(reproduce_command(request)),
        config_dirs=request.config_dirs,
        launched_in=str(Path.cwd()),
        config=redact(to_plain(config)),
        objective_metric=config.objective.metric,
        objective_direction=config.objective.direction.value,
        fingerprints=content,
    )
    root = request.root or Path(config.output_dir) / folder_name(config.name)
    folder = trial_folder(root, label, identity, earlier)
    return Trial(config, plan, record, folder, complete_elsewhere(config, folder, identity, request.root is None))


def plan_run(composer: Composer) -> Trial:
    """The one run of a command line. Raises ``ConfigError`` for a sweep, or as ``plan_trial`` does."""
    return plan_trial(composer.master, composer.request())


def trial_folder(root: Path, label: str, identity: str, earlier: Optional[str] = None) -> RunFolder:
    """The folder of a trial: an existing one with this id, or its earlier one, whatever its label, else a new one."""
    known = [one for one in (identity, earlier) if one is not None]
    existing = [path for one in known for path in sorted(root.glob(f"*{one}"))] if root.is_dir() else []
    if existing:
        return RunFolder(existing[0])
    name = folder_name(label)[:LONGEST_LABEL]
    return RunFolder(root / (f"{name}-{identity}" if name else identity))


def complete_elsewhere(config: Config, folder: RunFolder, identity: str, with_weights: bool) -> Optional[RunFolder]:
    """The folder below ``output_dir`` in which the trial is complete, ``with_weights`` or without; None: nowhere else.

    A run that is asked for by itself is of no use without its weights, which sweeps delete.
    """
    if config.rerun or folder.record.is_file():
        return None
    candidates = find_by_id(Path(config.output_dir), identity)
    usable = (other for other in candidates if other.has_weights or not with_weights)
    return next((other for other in usable if _is_complete(other)), None)


def _is_complete(folder: RunFolder) -> bool:
    """A record that cannot be read is no reason not to train."""
    try:
        return read_record(folder).status is Status.completed
    except RunFolderError:
        return False


def label_of(axes: dict[str, Any]) -> str:
    """What differs from the neighbours, by the last part of each key: ``learning_rate=2e-3 seed=1``."""
    return " ".join(f"{key.rsplit('.', 1)[-1]}={format_value(value)}" for key, value in axes.items())


def folder_name(text: str) -> str:
    """A name that needs no quoting in a shell."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_.")


def reproduce_command(request: Request) -> str:
    """A shell command that runs this trial by itself."""
    of_the_run = [override for override in request.overrides if not override.startswith("sweep")]
    cell = [as_override(key, value) for key, value in request.axes.items()]
    return sft_command(["train"], [*of_the_run, *cell], request.config_dirs)


ID_LENGTH = 12
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "config.json", "tokenizer*", "chat_template*")


def fingerprints(config: Config) -> dict[str, str]:
    """Content hashes of the data and the model that this run reads."""
    model, memory = config.model, HashMemory(default_cache_dir())
    return {
        **dataset_fingerprint(config.dataset, memory),
        "model": model_fingerprint(model, memory),
        "tokenizer": path_fingerprint(model.tokenizer, memory),
        "chat_template": path_fingerprint(model.chat_template, memory),
        **schedule_version(config.scheduler),
    }


def path_fingerprint(name: Optional[str], memory: HashMemory) -> str:
    """Content hash of a folder or file, or the name itself when nothing of that name exists here."""
    path = Path(name or "").expanduser()
    if name is None or not path.exists():
        return str(name)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return digest({str(file.relative_to(path)): memory.sha256(file) for file in files})


def model_fingerprint(model: ModelConfig, memory: HashMemory) -> str:
    """A hash of a local folder's files, the commit of a cached Hub model, or the name of one that is not here yet."""
    if model.source is ModelSource.random:
        return "random"
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        files = sorted({file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern)})
        return digest({file.name: memory.sha256(file) for file in files})
    cached = model_config_file(model.name, model.revision)
    commit = cached.parent.name if cached is not None else model.revision or "main"
    return f"{model.name}@{commit}"


def trial_id(config: Config, plan: Plan, content: dict[str, str], all_are_read: bool = False) -> str:
    """The id of a trial: deciding values, precision and number of devices as resolved, data and model content.

    ``all_are_read``: the id that 0.1.0 gave it, by which its folder may be found.
    """
    payload = {
        "values": deciding(to_plain(config), all_are_read),
        "precision": plan.precision.value,
        "num_devices": config.compute.num_devices,
        "content": content,
        **({"fsdp": True} if config.compute.fsdp else {}),  # its checkpoints are not those of whole copies
        **({"tf32": True} if plan.is_on("tf32") else {}),
        **formats_version(config, plan.precision.value),
    }
    return digest(payload)[:ID_LENGTH]


def formats_version(config: Config, precision: str) -> dict[str, int]:
    """Sets apart what 0.1.0 trained with other numbers.

    LoRA under bf16 had an fp32 base, QLoRA adapters in bf16; FSDP summed bf16 gradients and rounded the loss to bf16;
    random weights in bf16 were drawn in that format.
    """
    is_random = config.model.source is ModelSource.random
    differs = {
        "fp32": config.peft.method is PeftMethod.qlora,
        "bf16": config.peft.method is not PeftMethod.none or config.compute.fsdp,
        "pure_bf16": is_random,
    }
    return {"formats": 2} if differs[precision] else {}
