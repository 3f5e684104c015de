"""The steps of one training, in the order they happen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
from datasets import Dataset
from rich.console import Console
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_experiments.data.prepare import PreparedData, prepare_data, print_summary
from sft_experiments.data.store import default_cache_dir
from sft_experiments.errors import ConfigError, DataError, TrainingFailed
from sft_experiments.files import write_json_atomically
from sft_experiments.models.shape import peak_flops, training_flops_per_token
from sft_experiments.monitor.measure import measured
from sft_experiments.monitor.rules import RunFacts
from sft_experiments.monitor.session import Monitor
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.plan.arithmetic import evaluation_steps, plan_steps, rung_step, steps_line
from sft_experiments.plan.machine import host_capacity_gib
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.metrics import EVAL_LOSS, NOTHING_KEPT, TRAIN_LOSS
from sft_experiments.runs.plan_file import TO_THE_END, Choice, Plan, StepPlan, write_plan
from sft_experiments.runs.record import Phase, Record, during
from sft_experiments.schema import Config, PeftMethod
from sft_experiments.training.arguments import planned_learning_rates, training_arguments
from sft_experiments.training.attention import PACKED, choose_attention, probe_packing
from sft_experiments.training.callbacks import (
    CheckPacking,
    EvaluateAndSave,
    KeepCheckpoints,
    MonitorCallback,
    StopAtRung,
    StopOnSignal,
    StopTogether,
    newest_complete,
    step_of,
)
from sft_experiments.training.generate import Together, answer_validation
from sft_experiments.training.model import (
    architecture,
    carry_generation_config,
    check_loaded_model,
    hollow_model,
    load_model,
    load_tokenizer,
    outline,
    saved_buffers,
    take_outline,
)
from sft_experiments.training.process_group import (
    first_rank_first,
    largest,
    num_ranks,
    of_first_rank,
    this_rank,
    wait_for_all,
)
from sft_experiments.training.trainer import ExperimentTrainer, build_trainer
from sft_experiments.values import GIB

EARLY_STOPPING_RULE = "eval_loss_rising"


@dataclass
class Run:
    """One training: what was asked for and planned, where it is written, and what becomes known on the way."""

    folder: RunFolder
    config: Config
    plan: Plan
    record: Record

    @property
    def steps(self) -> StepPlan:
        """Known once the data are prepared."""
        assert self.plan.steps is not None
        return self.plan.steps

    def learn(self, **derived: Any) -> None:
        """Complete the plan with what only the worker can derive, in plan.json too."""
        self.plan = replace(self.plan, **derived)
        write_plan(self.folder, self.plan)

    @property
    def rung(self) -> Optional[int]:
        """The step at which the sweep wants to look before it lets this trial go on; None: train to the end."""
        share = self.plan.stop_at
        if share is None or share == TO_THE_END:
            return None
        steps = self.steps
        rung = rung_step(share, self.config.train.eval_steps, steps.total_steps, steps.warmup_steps)
        return rung if rung < steps.total_steps else None

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the seconds of a phase to the record, over all attempts."""
        started, timings = time.monotonic(), self.record.timings
        try:
            yield
        finally:
            timings[phase] = round(timings.get(phase, 0.0) + time.monotonic() - started, 3)


def train_in_folder(run: Run, stop: StopOnSignal) -> None:  # noqa: PLR0915 the order of a run, in one place
    """Train, evaluate and save; the run's record is filled in as facts become known. Failures are raised."""
    record = run.record
    with run.clock("data"), during(Phase.data):
        tokenizer = load_tokenizer(run.config.model)
        data = prepare(run, tokenizer)
        run.learn(steps=plan_for(run.config, data))
    with run.clock("model"), during(Phase.loading):
        model, attention = load(run.config, run.plan, tokenizer, data)
        run.learn(attention=attention)
        if this_rank() == 0:  # the others have the same weights, or none yet
            record.notes += check_loaded_model(model, tokenizer)
        notes = carry_generation_config(model, tokenizer, data.report.end_of_turn_ids)
        record.notes += notes if this_rank() == 0 else []
    with first_rank_first():  # it sets broken ones aside
        checkpoint, notes = newest_complete(run.folder.checkpoints)
    record.notes += notes
    resumed_step = step_of(checkpoint) if checkpoint else NOTHING_KEPT
    monitor = Monitor(run.config, run.folder, identity_of(record, resumed_step), facts_of(run, model))
    try:
        with during(Phase.loading):  # the trainer moves the model to its device
            watching = callbacks(run, monitor, stop)
            trainer = trainer_of(run, model, tokenizer, data, watching, resumes=checkpoint is not None)
            answer_at_evaluations(run, trainer, tokenizer, data, monitor)
            if trainer.args.packing or trainer.padding_free:  # rows without padding are a pack too
                trainer.add_callback(CheckPacking(trainer.data_collator))
        if checkpoint:
            print(f"goes on from step {resumed_step} of {run.steps.total_steps} ({checkpoint.name})")
        with run.clock("train"), during(Phase.training):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.agree() is not None and trainer.state.global_step < run.steps.total_steps:
            record.stop()
            return
        raise_if_unhealthy(monitor)
        if run.rung is not None and trainer.state.global_step >= run.rung:  # a checkpoint may lie beyond it
            record.wait_at_rung()
            return
        with run.clock("evaluate"):
            record.metrics = final_metrics(trainer) | monitor.summary()
            if data.test is not None and record.sweep is None:  # of a sweep, only the winner is scored
                record.metrics |= test_metrics(trainer, data.test)
            objective = objective_of(run.config, record.metrics)
        with run.clock("save"), during(Phase.saving):
            save(trainer, tokenizer, run.folder)
        record.complete(objective)
    finally:
        record.notes += monitor.finish(record.outcome, record.metrics)
        record.alerts = monitor.alerts()


def prepare(run: Run, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Read, check, mask and pack the data, or take what an earlier trial prepared; the report goes into the folder."""
    data = prepare_data(run.config.dataset, tokenizer, cache_dir=default_cache_dir(), model=run.config.model)
    if data.validation is None:
        raise DataError("there are no validation rows: give dataset.validation_files or dataset.validation_fraction")
    write_json_atomically(run.folder.data_report, data.report.as_json())
    print_summary(data.report.as_json(), Console())
    run.record.fingerprints.update(data.fingerprints)
    return data


def plan_for(config: Config, data: PreparedData) -> StepPlan:
    """The steps, now that the number of sequences is known."""
    train = data.report.splits["train"]
    steps = plan_steps(
        len(data.train),
        config.train.effective_batch_size,
        config.train.num_train_epochs,
        config.train.max_steps,
        config.scheduler.warmup_ratio,
        config.scheduler.warmup_steps,
    )
    return replace(steps, tokens_per_epoch=train.tokens, documents=train.rows)


def load(
    config: Config, plan: Plan, tokenizer: PreTrainedTokenizerBase, data: PreparedData
) -> tuple[PreTrainedModel, Choice]:
    """The model in its planned precision, and its attention, one that cannot mix packed documents."""
    packs = "seq_lengths" in data.train.column_names
    attention = choose_attention(
        config.model.attn_implementation,
        packs,
        plan.device.value,
        plan.precision.value,
        architecture(config.model, tokenizer),
    )
    if config.compute.fsdp and num_ranks() > 1:
        return load_once(config, plan, tokenizer, attention.value), attention
    if attention.value != PACKED:
        return load_model(config, tokenizer, plan.precision.value, attention.value), attention
    model, fault = load_packed(config, plan, tokenizer)
    if model is not None:
        return model, attention
    if packs or config.model.attn_implementation == PACKED:
        advice = "set dataset.packing=none and model.attn_implementation=sdpa"
        raise ConfigError(f"model.attn_implementation={PACKED}: {fault}; {advice}")
    padded = Choice("sdpa", f"padded batches: {fault}")
    return load_model(config, tokenizer, plan.precision.value, padded.value), padded


def load_packed(
    config: Config, plan: Plan, tokenizer: PreTrainedTokenizerBase
) -> tuple[Optional[PreTrainedModel], str]:
    """The model with our attention, or why it cannot have it: found by asking, for models that compute their own.

    On a GPU rows are proven apart where the model is then, before the first step, and a fault ends the run.
    """
    try:
        model = load_model(config, tokenizer, plan.precision.value, PACKED)
    except KeyError:  # its layers are looked up by the name of their attention
        return None, "the model takes no attention but its own"
    collate = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, padding_free=True)
    with suppress(Exception):  # what cannot be asked here is asked before the first step, in the state that trains
        if plan.device.value == "cpu" and probe_packing(model, collate).leaks:
            return None, "in batches without padding, rows of this model would see each other"
    return model, ""


def load_once(config: Config, plan: Plan, tokenizer: PreTrainedTokenizerBase, attention: str) -> PreTrainedModel:
    """The weights on the first rank; the others get a hollow model, and their parts when accelerate shards it.

    accelerate distributes weights, not buffers: a model that saves some is loaded by every rank.
    """
    if this_rank() == 0:
        model = load_model(config, tokenizer, plan.precision.value, attention)
        of_first_rank(outline(model))
        return model
    known = of_first_rank(None)
    model = hollow_model(config, tokenizer, attention)
    if saved_buffers(model):
        return load_model(config, tokenizer, plan.precision.value, attention)
    take_outline(model, known)
    return model


def identity_of(record: Record, resumed_step: int) -> RunIdentity:
    """Who the run is, in every tracker."""
    return RunIdentity(
        trial_id=record.trial_id,
        name=record.name,
        label=record.label,
        sweep=record.sweep,
        axes=record.axes,
        fingerprints=record.fingerprints,
        resumed_step=resumed_step,
    )


def facts_of(run: Run, model: PreTrainedModel) -> RunFacts:
    """What the health rules judge the run against, and what utilisation is measured by."""
    peak, plan = run.config.monitor.peak_tflops, run.plan
    peak = peak * 1e12 if peak is not None else peak_flops(run.record.environment["device"])
    return RunFacts(
        total_steps=run.steps.total_steps,
        warmup_steps=run.steps.warmup_steps,
        planned_learning_rates=planned_learning_rates(run.config, run.steps),
        flops_per_token=flops_per_token(run, model),
        peak_flops=peak * plan.batch.num_devices if peak is not None else None,
        memory_gib=memory_capacity_gib(plan.device.value),
    )


def memory_capacity_gib(device: str) -> float:
    """What there is: of the device for ``cuda``, else of the host or the container's share of it."""
    return float(torch.cuda.mem_get_info()[1]) / GIB if device == "cuda" else host_capacity_gib()


def flops_per_token(run: Run, model: PreTrainedModel) -> float:
    """Of one trained token, from the model's parameters outside the input embedding and the mean document length."""
    layers, steps = model.config.get_text_config(), run.steps
    embedding = model.get_input_embeddings().weight.numel()
    tied = getattr(layers, "tie_word_embeddings", False)
    matmul = model.num_parameters() - (0 if tied else embedding)
    trained = 1.0 if run.config.peft.method is PeftMethod.none else 0.0
    length = steps.tokens_per_epoch / max(1, steps.documents)
    return training_flops_per_token(matmul, trained, layers.num_hidden_layers, layers.hidden_size, length)


def trainer_of(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    watching: list[TrainerCallback],
    resumes: bool,
) -> ExperimentTrainer:
    """SFTTrainer with prepared data and our callbacks; what it chose is said and planned."""
    arguments = training_arguments(run.config, run.plan, run.folder, resumes)
    trainer = build_trainer(run.config, model, tokenizer, arguments, (data.train, data.validation), watching)
    run.learn(loss_head=trainer.loss_head)
    print(f"steps: {steps_line(run.steps, run.plan.batch)}")
    for name, choice in (("attention", run.plan.attention), ("loss head", run.plan.loss_head)):
        assert choice is not None
        print(f"{name}: {choice.value} ({choice.reason})")
    trainer.answer_bytes = data.report.splits["validation"].answer_bytes
    return trainer


def answer_at_evaluations(
    run: Run,
    trainer: ExperimentTrainer,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    monitor: Monitor,
) -> None:
    """Let each evaluation answer validation prompts: samples to read, and scores."""
    config, together = run.config, Together(run.plan.generation_batch, in_step=run.config.compute.fsdp)

    def answer_metrics() -> dict[str, float]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        metrics, samples = answer_validation(model, tokenizer, config, data, trainer.state.global_step, together)
        if together.size < run.plan.generation_batch:
            run.learn(generation_batch=together.size)
            run.record.notes.append(f"generation with {together.size} prompts at a time: more did not fit")
        monitor.samples(samples)
        return metrics

    trainer.extra_metrics = answer_metrics


def callbacks(run: Run, monitor: Monitor, stop: StopOnSignal) -> list[TrainerCallback]:
    """In the order they act: watch, decide, keep."""
    train, rung = run.config.train, run.rung
    patience = train.early_stopping_patience
    return [
        MonitorCallback(monitor),
        EvaluateAndSave(evaluation_steps(train.eval_steps, run.steps.total_steps)),
        stop,
        *([StopAtRung(rung)] if rung is not None else []),
        KeepCheckpoints(train.save_total_limit),
        *([EarlyStoppingCallback(patience)] if patience is not None else []),
        StopTogether(),
    ]


def raise_if_unhealthy(monitor: Monitor) -> None:
    """A health rule with policy stop ended the training: early stopping is a result, anything else a failure."""
    alert = monitor.stopped
    unhealthy = alert is not None and alert.rule != EARLY_STOPPING_RULE
    if alert is not None and unhealthy:
        message = f"stopped at step {alert.step} by monitor.rules.{alert.rule}: {alert.message}"
    else:
        message = "stopped by the first rank"
    if largest(int(unhealthy)):
        raise TrainingFailed(message, "diverged")


def test_metrics(trainer: ExperimentTrainer, test: Dataset) -> dict[str, float]:
    """Loss and token accuracy on data that nothing was chosen by."""
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    return {f"test/{name}": metrics[f"test_{name}"] for name in ("loss", "mean_token_accuracy")}


def final_metrics(trainer: ExperimentTrainer) -> dict[str, Any]:
    """Numbers of the restored best checkpoint (``eval/*``), and where it was found."""
    best_step = trainer.state.best_global_step or trainer.state.global_step
    evaluated = measured(trainer.evaluate())
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {
        **evaluated,
        f"best/{EVAL_LOSS}": evaluated[EVAL_LOSS],
        "best/step": best_step,
        TRAIN_LOSS: losses[-1] if losses else None,
        "total_steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "epochs": round(float(trainer.state.epoch or 0.0), 4),
    }


def objective_of(config: Config, metrics: dict[str, Any]) -> float:
    """The configured metric; ``DataError`` when this run does not measure it."""
    if config.objective.metric not in metrics:
        measured_names = ", ".join(sorted(name for name in metrics if "/" in name))
        raise DataError(f"objective.metric={config.objective.metric} was not measured; measured: {measured_names}")
    return float(metrics[config.objective.metric])


def save(trainer: ExperimentTrainer, tokenizer: PreTrainedTokenizerBase, folder: RunFolder) -> None:
    """Model (or adapter) and tokenizer with its chat template, loadable by from_pretrained."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True
    trainer.save_model(str(folder.model))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(folder.model)
        if hasattr(model, "get_base_model"):  # an adapter's folder has no model of its own that would bring it
            model.generation_config.save_pretrained(folder.model)
    wait_for_all()
