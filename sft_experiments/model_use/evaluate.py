"""Evaluate a saved model with the code that computed its objective: on its own validation data or on other data."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig

from sft_experiments.config.recorded import recorded_run
from sft_experiments.data.prepare import PreparedData, prepare_data
from sft_experiments.data.store import default_cache_dir
from sft_experiments.errors import DataError
from sft_experiments.launch.trial import Trial, plan_trial
from sft_experiments.model_use.saved import load_saved_model, load_saved_tokenizer
from sft_experiments.monitor.measure import measured
from sft_experiments.plan.arithmetic import plan_steps
from sft_experiments.plan.machine import loads_bf16
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import Sample
from sft_experiments.runs.plan_file import Choice
from sft_experiments.schema import DataSource, PackingStrategy, PeftMethod, Policy
from sft_experiments.training.arguments import training_arguments
from sft_experiments.training.generate import answer_validation
from sft_experiments.training.trainer import ExperimentTrainer, build_trainer

_NOT_RESULTS = {"eval/seconds", "eval/model_preparation_time"}


def evaluate_run(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, float], list[Sample]]:
    """Metrics (``eval/loss`` token-weighted, ``eval/exact_match``, ...) and sample answers of the model in ``path``.

    Without overrides the run's own validation data give its recorded objective again. Other data are given as for
    training: ``dataset=messages dataset.validation_files=[other.jsonl]``; with only ``train_files``, those are
    evaluated. Nothing is written. Raises ``DataError`` when there are no rows to evaluate.
    """
    config, request = recorded_run(path, overrides)
    if any(override.lstrip("+").startswith("dataset") for override in overrides):
        evaluate_only(config.dataset)
    trial = plan_trial(config, request)
    folder = RunFolder(path)
    tokenizer = load_saved_tokenizer(folder)
    data = prepare_data(trial.config.dataset, tokenizer, cache_dir=default_cache_dir())
    if data.validation is None:
        raise DataError("there are no rows to evaluate: give dataset.validation_files")
    in_bf16 = loads_bf16(trial.plan.precision.value, trial.config.peft.method)  # as its objective was measured
    model = load_saved_model(folder, trial.config, tokenizer, torch.bfloat16 if in_bf16 else torch.float32)
    samples: list[Sample] = []
    with TemporaryDirectory() as scratch:
        trainer = _trainer(trial, model, tokenizer, data, RunFolder(Path(scratch)))

        def answer_metrics() -> dict[str, float]:
            metrics, found = answer_validation(model, tokenizer, trial.config, data, step=0)
            samples.extend(found)
            return metrics

        trainer.extra_metrics = answer_metrics
        metrics = measured(trainer.evaluate())
    return {name: float(value) for name, value in metrics.items() if name not in _NOT_RESULTS}, samples


def evaluate_only(dataset: DictConfig) -> None:
    """Make all that is to be evaluated the validation rows of a data set made of files.

    Files need no training rows beside them: the reader insists on some, so it gets the same ones, and rows are not
    dropped for being in both.
    """
    if dataset.source is not DataSource.files:
        return
    dataset.train_files = dataset.validation_files = list(dataset.validation_files or dataset.train_files)
    dataset.packing = PackingStrategy.none
    dataset.rules = {**dataset.rules, "overlapping_prompt": Policy.ignore}


def _trainer(trial: Trial, model: Any, tokenizer: Any, data: PreparedData, scratch: RunFolder) -> ExperimentTrainer:
    """The training's own trainer, which only evaluates here."""
    steps = plan_steps(len(data.train), trial.config.train.effective_batch_size, 1)
    plan = replace(trial.plan, steps=steps, attention=Choice("sdpa", "nothing is packed"))
    # Neither trackers nor an adapter of its own: the model comes as it was saved, and whole.
    config = replace(
        trial.config,
        logger=replace(trial.config.logger, trackers=[]),
        peft=replace(trial.config.peft, method=PeftMethod.none),
        compute=replace(trial.config.compute, fsdp=False),
    )
    arguments = training_arguments(config, plan, scratch, resumes=True)
    arguments.packing = False
    return build_trainer(config, model, tokenizer, arguments, (data.validation, data.validation))
