"""The steps of one training, in the order they happen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from datasets import Dataset
from rich.console import Console
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from sft_experiments.data.prepare import PreparedData, prepare_data
from sft_experiments.data.report import print_summary
from sft_experiments.data.store import default_cache_dir
from sft_experiments.errors import ConfigError, DataError, TrainingFailed, first_line
from sft_experiments.files import write_json_atomically
from sft_experiments.models.shape import peak_flops, training_flops_per_token
from sft_experiments.monitor.measure import measured
from sft_experiments.monitor.rules import RunFacts
from sft_experiments.monitor.session import Monitor
from sft_experiments.monitor.trackers.tracker import RunIdentity
from sft_experiments.plan.arithmetic import (
    BatchPlan,
    StepPlan,
    evaluation_steps,
    plan_steps,
    rung_step,
    steps_as_dict,
    steps_line,
)
from sft_experiments.plan.machine import memory_capacity_gib
from sft_experiments.runs.folder import RunFolder
from sft_experiments.runs.record import Record, Status
from sft_experiments.schema import Config, PeftMethod
from sft_experiments.training.arguments import training_arguments
from sft_experiments.training.attention import check_packing, choose_attention
from sft_experiments.training.callbacks import (
    EvaluateAndSave,
    KeepCheckpoints,
    MonitorCallback,
    StopAtRung,
    StopOnSignal,
    StopTogether,
)
from sft_experiments.training.checkpoints import newest_complete, step_of
from sft_experiments.training.generate import AnswerValidationPrompts
from sft_experiments.training.model import adapter_config, architecture, check_loaded_model, load_model, load_tokenizer
from sft_experiments.training.packed_attention import register_packed_attention
from sft_experiments.training.ranks import first_rank_first, largest, wait_for_all
from sft_experiments.training.schedule import planned_learning_rates
from sft_experiments.training.trainer import ExperimentTrainer

EARLY_STOPPING_RULE = "eval_loss_rising"


def train_in_folder(folder: RunFolder, config: Config, record: Record, stop: StopOnSignal) -> None:
    """Train, evaluate and save; ``record`` is filled in as facts become known. Failures are raised."""
    clock = Clock(record.timings)
    with clock("data"):
        tokenizer = load_tokenizer(config.model)
        data = prepare(config, tokenizer, folder, record)
        steps = plan_for(config, data, record, folder)
    with clock("model"):
        model = load(config, tokenizer, data, record)
        record.notes += check_loaded_model(model, tokenizer)
    with first_rank_first():  # it sets broken ones aside
        checkpoint, notes = newest_complete(folder.checkpoints)
    record.notes += notes
    resumed_step = step_of(checkpoint) if checkpoint else -1
    monitor = Monitor(config, folder, identity_of(record, resumed_step), facts_of(config, steps, model, record))
    status = Status.failed
    try:
        resumes = checkpoint is not None
        trainer = build_trainer(config, record, steps, folder, model, tokenizer, data, monitor, stop, resumes)
        if trainer.args.packing:
            check_packing(model, trainer.data_collator)
        if checkpoint:
            print(f"goes on from step {resumed_step} of {steps.total_steps} ({checkpoint.name})")
        with clock("train"):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.agree() is not None and trainer.state.global_step < steps.total_steps:
            status = Status.preempted
            return
        raise_if_unhealthy(monitor)
        rung = rung_of(config, record, steps)
        if rung is not None and trainer.state.global_step >= rung:  # a checkpoint may lie beyond it
            status = record.status = Status.pruned
            return
        with clock("evaluate"):
            record.metrics = final_metrics(trainer) | monitor.summary()
            if data.test is not None and record.sweep is None:  # of a sweep, only the winner is scored
                record.metrics |= test_metrics(trainer, data.test)
            record.objective = objective_of(config, record.metrics)
        with clock("save"):
            save(trainer, tokenizer, folder)
        status = record.status = Status.completed
    finally:
        record.notes += monitor.finish(status.value, record.metrics)
        record.alerts = monitor.alerts()


def rung_of(config: Config, record: Record, steps: StepPlan) -> Optional[int]:
    """The step at which the sweep wants to look before it lets this trial go on; None: train to the end."""
    share = record.plan.get("stop_at")
    if share is None:
        return None
    rung = rung_step(share, config.train.eval_steps, steps.total_steps, steps.warmup_steps)
    return rung if rung < steps.total_steps else None


def prepare(config: Config, tokenizer: PreTrainedTokenizerBase, folder: RunFolder, record: Record) -> PreparedData:
    """Read, check, mask and pack the data, or take what an earlier trial prepared; the report goes into the folder."""
    data = prepare_data(config.dataset, tokenizer, cache_dir=default_cache_dir(), model=config.model)
    if data.validation is None:
        raise DataError("there are no validation rows: give dataset.validation_files or dataset.validation_fraction")
    write_json_atomically(folder.data_report, data.report.as_json())
    print_summary(data.report.as_json(), Console())
    record.fingerprints.update(data.fingerprints)
    return data


def plan_for(config: Config, data: PreparedData, record: Record, folder: RunFolder) -> StepPlan:
    """Steps, now that the number of sequences is known; plan.json and the record learn them."""
    train = data.report.splits["train"]
    steps = plan_steps(
        len(data.train),
        config.train.effective_batch_size,
        config.train.num_train_epochs,
        config.train.max_steps,
        config.scheduler.warmup_ratio,
        config.scheduler.warmup_steps,
    )
    batch = batch_of(record)
    record.plan["steps"] = steps_as_dict(steps, batch, train.tokens, train.rows)
    write_json_atomically(folder.plan, record.plan)
    record.write(folder)
    return steps


def batch_of(record: Record) -> BatchPlan:
    batch = record.plan["batch"]
    return BatchPlan(batch["per_device_train_batch_size"], batch["gradient_accumulation_steps"], batch["num_devices"])


def load(config: Config, tokenizer: PreTrainedTokenizerBase, data: PreparedData, record: Record) -> PreTrainedModel:
    """The model in its planned precision and with an attention that cannot mix packed documents."""
    register_packed_attention()
    device = record.plan["device"]["value"]
    packs = "seq_lengths" in data.train.column_names
    attention = choose_attention(config.model.attn_implementation, packs, device, architecture(config.model, tokenizer))
    record.plan["attention"] = {"value": attention.value, "reason": attention.reason}
    return load_model(config, tokenizer, record.plan["precision"]["value"], attention.value)


def identity_of(record: Record, resumed_step: int) -> RunIdentity:
    return RunIdentity(
        trial_id=record.trial_id,
        name=record.name,
        label=record.label,
        sweep=record.sweep,
        axes=record.axes,
        fingerprints=record.fingerprints,
        resumed_step=resumed_step,
    )


def facts_of(config: Config, steps: StepPlan, model: PreTrainedModel, record: Record) -> RunFacts:
    """What the health rules judge the run against, and what utilisation is measured by."""
    peak = config.monitor.peak_tflops
    peak = peak * 1e12 if peak is not None else peak_flops(record.environment["device"])
    return RunFacts(
        total_steps=steps.total_steps,
        warmup_steps=steps.warmup_steps,
        planned_learning_rates=planned_learning_rates(config, steps),
        flops_per_token=flops_per_token(config, model, record),
        peak_flops=peak * batch_of(record).num_devices if peak is not None else None,
        memory_gib=memory_capacity_gib(record.plan["device"]["value"]),
    )


def flops_per_token(config: Config, model: PreTrainedModel, record: Record) -> float:
    """Of one trained token, from the model's parameters outside the input embedding and the mean document length."""
    architecture, steps = model.config.get_text_config(), record.plan["steps"]
    embedding = model.get_input_embeddings().weight.numel()
    tied = getattr(architecture, "tie_word_embeddings", False)
    matmul = model.num_parameters() - (0 if tied else embedding)
    trained = 1.0 if config.peft.method is PeftMethod.none else 0.0
    length = steps["tokens_per_epoch"] / max(1, steps["documents"])
    return training_flops_per_token(matmul, trained, architecture.num_hidden_layers, architecture.hidden_size, length)


def build_trainer(
    config: Config,
    record: Record,
    steps: StepPlan,
    folder: RunFolder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    monitor: Monitor,
    stop: StopOnSignal,
    resumes: bool,
) -> ExperimentTrainer:
    """SFTTrainer with prepared data and our callbacks."""
    arguments = training_arguments(config, record.plan, batch_of(record), steps, folder, resumes)
    try:
        trainer = ExperimentTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=tokenizer,
            peft_config=adapter_config(config),
            callbacks=callbacks(config, steps, monitor, stop, rung_of(config, record, steps)),
        )
    except ValueError as error:
        if config.peft.method is PeftMethod.none or "Target modules" not in str(error):
            raise
        raise ConfigError(f"peft.target_modules={config.peft.target_modules}: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    record.plan["loss_head"] = {"value": trainer.loss_head.value, "reason": trainer.loss_head.reason}
    print(f"steps: {steps_line(record.plan['steps'])}")
    for part in ("attention", "loss_head"):
        print(f"{part.replace('_', ' ')}: {record.plan[part]['value']} ({record.plan[part]['reason']})")
    trainer.answer_bytes = data.report.splits["validation"].answer_bytes
    answers = AnswerValidationPrompts(config, tokenizer, data)

    def answer_metrics() -> dict[str, float]:
        metrics, samples = answers(trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step)
        monitor.samples(samples)
        return metrics

    trainer.extra_metrics = answer_metrics
    return trainer


def callbacks(
    config: Config, steps: StepPlan, monitor: Monitor, stop: StopOnSignal, rung: Optional[int] = None
) -> list[TrainerCallback]:
    """In the order they act: watch, decide, keep."""
    patience = config.train.early_stopping_patience
    return [
        MonitorCallback(monitor),
        EvaluateAndSave(evaluation_steps(config.train.eval_steps, steps.total_steps)),
        stop,
        *([StopAtRung(rung)] if rung is not None else []),
        KeepCheckpoints(config.train.save_total_limit),
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
        "best/eval/loss": evaluated["eval/loss"],
        "best/step": best_step,
        "train/loss": losses[-1] if losses else None,
        "total_steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "epochs": round(float(trainer.state.epoch or 0.0), 4),
    }


def objective_of(config: Config, metrics: dict[str, Any]) -> Optional[float]:
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
    wait_for_all()


class Clock:
    """Seconds of each phase, added up over attempts."""

    def __init__(self, timings: dict[str, float]) -> None:
        self.timings = timings

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.timings[phase] = round(self.timings.get(phase, 0.0) + time.monotonic() - started, 3)
