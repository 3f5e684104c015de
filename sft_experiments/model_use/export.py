"""Hand a trained model on: weights, tokenizer, and a model card that says how it came about."""

import shutil
from pathlib import Path

import torch

from sft_experiments.errors import RunFolderError
from sft_experiments.files import write_text_atomically
from sft_experiments.model_use.card import model_card
from sft_experiments.model_use.saved import base_model_name, load_trained
from sft_experiments.report.publish import write_report
from sft_experiments.runs.folder import RunFolder

REPORT = "training_report.html"


def export_run(folder: RunFolder, out: Path, dtype: str = "float32") -> Path:
    """Write model, tokenizer, README.md (the model card) and the run's report page to ``out``; return ``out``.

    An adapter is merged into its base model. Raises ``RunFolderError`` when ``out`` holds something already: an
    export never mixes two models. Appears whole or not at all.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} exists and is not empty; choose another folder")
    trained = load_trained(folder, merge=True, device="cpu")
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # left by an export that was killed
    scratch.mkdir(parents=True)
    trained.model.to(getattr(torch, dtype)).save_pretrained(scratch)
    trained.tokenizer.save_pretrained(scratch)
    write_report(folder.path, scratch / REPORT)
    write_text_atomically(scratch / "README.md", model_card(folder, trained.record, base_model_name(folder), REPORT))
    if out.exists():
        out.rmdir()
    scratch.rename(out)
    return out
