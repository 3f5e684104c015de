"""Hand a trained model on: weights, tokenizer, and a model card that says how it came about."""

import shutil
from pathlib import Path

import torch

from sft_experiments.errors import ModelError, RunFolderError
from sft_experiments.files import write_text_atomically
from sft_experiments.model_use.card import model_card
from sft_experiments.model_use.saved import Trained, base_model_name, load_trained
from sft_experiments.report.publish import write_report
from sft_experiments.runs.folder import RunFolder
from sft_experiments.training.model import architecture, carry_generation_config

REPORT = "training_report.html"


def export_run(folder: RunFolder, out: Path, dtype: str | None = None) -> Path:
    """Write model, tokenizer, README.md (the model card) and the run's report page to ``out``; return ``out``.

    ``dtype`` of the weights: None for that of the base model, as it was published. An adapter is merged into its base
    model. Raises ``RunFolderError`` when ``out`` holds something already: an
    export never mixes two models. Appears whole or not at all.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} exists and is not empty; choose another folder")
    trained = load_trained(folder, merge=True, device="cpu")
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # left by an export that was killed
    scratch.mkdir(parents=True)
    carry_generation_config(trained.model, trained.tokenizer, trained.end_of_turn_ids)
    trained.model.to(getattr(torch, dtype) if dtype else published_dtype(trained)).save_pretrained(scratch)
    trained.tokenizer.save_pretrained(scratch)
    write_report(folder.path, scratch / REPORT)
    write_text_atomically(scratch / "README.md", model_card(folder, trained.record, base_model_name(folder), REPORT))
    if out.exists():
        out.rmdir()
    scratch.rename(out)
    return out


def published_dtype(trained: Trained) -> torch.dtype:
    """The number format of the base model's files; float32 when they do not tell, or are not here any more."""
    try:
        dtype = architecture(trained.config.model, trained.tokenizer).dtype
    except ModelError:
        return torch.float32
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
