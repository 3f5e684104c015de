"""Load what a finished run saved: its model, whole or as an adapter, and its tokenizer."""

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sft_experiments.config.load import as_mapping, from_plain
from sft_experiments.config.recorded import completed
from sft_experiments.errors import ModelError, RunFolderError, first_line
from sft_experiments.files import read_json
from sft_experiments.launch.booking import show_one_gpu
from sft_experiments.plan.machine import resolve_device
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Record, read_record
from sft_experiments.schema import Config, PeftMethod
from sft_experiments.training.model import load_model


@dataclass(frozen=True)
class Trained:
    """A trained model, ready to generate, with what is known about its training."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: Config
    record: Record
    end_of_turn_ids: list[int]  # generation must stop at these


def quiet() -> None:
    """No progress bars and notices of the libraries between our lines; their errors still come through."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_trained(folder: RunFolder, merge: bool = False, device: str | None = None) -> Trained:
    """The saved model of a run, in float32 on CPU and bfloat16 on a GPU.

    ``merge`` folds an adapter into its base model, which is then loaded unquantised. Raises ``RunFolderError`` when
    the run kept no weights, ``ModelError`` when they cannot be loaded.
    """
    _require_weights(folder)
    record = read_record(folder)
    config = from_plain(as_mapping(completed(record.config)))
    device = device or resolve_device(config.compute.device).value
    if device == "cuda":
        show_one_gpu()
    tokenizer = load_saved_tokenizer(folder)
    model = load_saved_model(folder, config, tokenizer, torch.float32 if device == "cpu" else torch.bfloat16, merge)
    model.to(device).eval()
    model.config.use_cache = True
    return Trained(model, tokenizer, config, record, end_of_turn_ids(folder))


def load_saved_tokenizer(folder: RunFolder) -> PreTrainedTokenizerBase:
    _require_weights(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder.model)
    return tokenizer


def load_saved_model(
    folder: RunFolder, config: Config, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, merge: bool = False
) -> Any:
    """The weights in ``folder.model``. An adapter is put on its base model, built or downloaded as for training."""
    _require_weights(folder)
    trust = config.model.trust_remote_code
    try:
        if not is_adapter(folder):
            return AutoModelForCausalLM.from_pretrained(folder.model, dtype=dtype, trust_remote_code=trust)
        from peft import PeftModel  # slow: peft, seconds

        if merge:
            config = replace(config, peft=replace(config.peft, method=PeftMethod.lora))  # no 4-bit base to merge into
        base = load_model(config, tokenizer, "pure_bf16" if dtype is torch.bfloat16 else "fp32", "sdpa")
        adapted = PeftModel.from_pretrained(base, str(folder.model))
        return adapted.merge_and_unload() if merge else adapted
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder.model}: {first_line(error)}") from error


def is_adapter(folder: RunFolder) -> bool:
    return (folder.model / "adapter_config.json").is_file()


def end_of_turn_ids(folder: RunFolder) -> list[int]:
    """The ids that the data's answers end with; none when the run left no data report."""
    try:
        report = read_json(folder.data_report)
    except RunFolderError:
        return []
    ids = report.get("end_of_turn_ids", [])
    return [int(one) for one in ids] if isinstance(ids, list) else []


def base_model_name(folder: RunFolder) -> str | None:
    """The base model that an adapter names, for the model card."""
    file = folder.model / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") if file.is_file() else None


def _require_weights(folder: RunFolder) -> None:
    if not folder.record.is_file():
        raise RunFolderError(f"{folder.path} is not a run folder: it has no record.json")
    if not (folder.model / "config.json").is_file() and not is_adapter(folder):
        record = read_record(folder)
        raise RunFolderError(
            f"{folder.path} holds no trained model (status {record.status.value}); a sweep keeps the weights of its "
            f"best sweep.keep_models trials. Train it again: sft train --from {folder.path} name=final"
        )
