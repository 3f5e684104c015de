"""One trial before it runs: composed, checked, planned, given its id and folder, each value with its origin."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from sft_experiments.config.hydra import Composer, Request
from sft_experiments.config.load import load_plugins, to_config, to_plain, write_config
from sft_experiments.config.validate import check_config, check_warmup, unread
from sft_experiments.data.store import HashMemory, dataset_fingerprint, default_cache_dir
from sft_experiments.errors import ConfigError
from sft_experiments.models.shape import model_config_file
from sft_experiments.plan.arithmetic import schedule_version
from sft_experiments.plan.derive import build_plan
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.identity import deciding
from sft_experiments.runs.plan_file import Plan, write_plan
from sft_experiments.runs.record import Record, Status, read_record, utc_now
from sft_experiments.schema import Config, ModelConfig, ModelSource, PeftMethod
from sft_experiments.secrets import redact, redact_text
from sft_experiments.values import as_override, digest, format_value, select

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
    raw = {group: OmegaConf.to_container(composed[group], resolve=False) for group in ("train", "scheduler")}
    typed = {override.lstrip("+~").split("=", 1)[0] for override in request.overrides}
    found = {}
    for key in DIALS:
        value = attrgetter(key)(config)
        if value is not None and (key != "train.num_train_epochs" or config.train.max_steps is None):
            origin = (
                _set_by_name(key, typed, request)
                or _size_class(select(raw, key), config)
                or _set_by_group(key, typed, request)
            )
            found[key] = {"value": value, "origin": origin or "default"}
    return found


def _set_by_name(key: str, typed: set[str], request: Request) -> Optional[str]:
    """Who named this very key; None when nobody did."""
    if key in request.axes:
        return "sweep"
    if key in typed:
        return "command line"
    return "experiment" if key in request.experiment_keys else None


def _size_class(raw: Any, config: Config) -> Optional[str]:
    """The size class that a value follows; ``raw`` is the value as conf/ has it, before interpolation."""
    if "model.recommended" not in str(raw):
        return None
    is_scaled = "peft.learning_rate_factor" in str(raw) and config.peft.learning_rate_factor != 1
    return f"model size class {config.model.size_class}" + " x peft.learning_rate_factor" * is_scaled


def _set_by_group(key: str, typed: set[str], request: Request) -> Optional[str]:
    """Who chose the option that the value stands in (``scheduler=linear``); None when nobody did."""
    group = key.split(".")[0]
    if group in request.axes:
        return "sweep"
    return "command line" if group in typed else None


LONGEST_LABEL = 80  # characters of a folder name
SUPERSEDED = ".superseded"


@dataclass(frozen=True)
class Trial:
    """A trial that can be run: everything a worker needs is in these fields, and in the folder once written."""

    config: Config
    plan: Plan
    record: Record
    folder: RunFolder

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
        """What an earlier launch of the same trial left, if anything."""
        return read_record(self.folder) if self.folder.record.is_file() else None

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
    if request.root is None and (mistakes := list(unread(config, keys_of(request.overrides)))):  # a sweep looks at all
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
        config=redact(to_plain(config)),
        objective_metric=config.objective.metric,
        objective_direction=config.objective.direction.value,
        fingerprints=content,
    )
    root = request.root or Path(config.output_dir) / folder_name(config.name)
    return Trial(config, plan, record, trial_folder(root, label, identity, earlier))


def plan_run(composer: Composer) -> Trial:
    """The one run of a command line. Raises ``ConfigError`` for a sweep, or as ``plan_trial`` does."""
    return plan_trial(composer.master, composer.request())


def keys_of(overrides: Iterable[str]) -> list[str]:
    """The keys that overrides name, whatever sign stands before them."""
    return [override.lstrip("+~").split("=", 1)[0] for override in overrides]


def trial_folder(root: Path, label: str, identity: str, earlier: Optional[str] = None) -> RunFolder:
    """The folder of a trial: an existing one with this id, or its earlier one, whatever its label, else a new one."""
    known = [one for one in (identity, earlier) if one is not None]
    existing = [path for one in known for path in sorted(root.glob(f"*{one}"))] if root.is_dir() else []
    if existing:
        return RunFolder(existing[0])
    name = folder_name(label)[:LONGEST_LABEL]
    return RunFolder(root / (f"{name}-{identity}" if name else identity))


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
    return shlex.join(["sft", "train", *of_the_run, *cell])


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
