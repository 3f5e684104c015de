"""The one subclass of SFTTrainer: what no argument or callback of it can do.

1. Losses are means over supervised *tokens*: since the last log event in training, over the whole set in evaluation.
   The Trainer's own numbers are means over steps and batches and change with the batch size.
2. A non-finite loss or gradient stops the run before it reaches the weights.
3. The loss runs on supervised positions only (loss_head), and right-padded batches carry no attention mask.
Sums stay on the device and are read once per log event; the guard reads one flag per optimizer step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_experiments.errors import ConfigError, DataError, SftError, TrainingFailed, first_line
from sft_experiments.plan.arithmetic import SCHEDULES
from sft_experiments.runs.plan_file import Choice
from sft_experiments.runs.record import Phase, during
from sft_experiments.schema import Config, PeftMethod
from sft_experiments.training.arguments import own_schedule
from sft_experiments.training.attention import ignores_padding
from sft_experiments.training.loss_head import (
    LABELLED_ROWS,
    LossSums,
    add_loss_head,
    choose_loss_head,
    loss_sums,
    proven,
)
from sft_experiments.training.model import adapter_config, saved_buffers, train_adapters_in_fp32
from sft_experiments.training.repeated_rows import ROW_STARTS, WithRowStarts, unlabel_repeated_rows


class ExperimentTrainer(SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """SFTTrainer with token-weighted losses, a divergence guard and the fast loss head.

    Expects tokenized rows and TRL's own collator. ``loss_head`` tells which implementation runs, and why.
    """

    data_collator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.loss_type != "nll":
            raise ConfigError(f"train.extra.loss_type={self.args.loss_type} is not supported: use nll")
        if self.args.label_smoothing_factor != 0:
            raise ConfigError(
                f"train.extra.label_smoothing_factor={self.args.label_smoothing_factor} is not supported: use 0"
            )
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "get_base_model"):
            train_adapters_in_fp32(model)
            model = model.get_base_model()
        self._sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.is_fsdp_enabled:
            self._shard_exactly(model)
        self.loss_head, self.drops_padding_mask = self._shortcuts(model)
        if self.args.packing and self.padding_free and self.accelerator.num_processes > 1:
            self.data_collator = WithRowStarts(self.data_collator)
        self._train_sums = self._zero_sums()
        self._eval_sums = self._zero_sums()
        self._since_log = [0.0, 0.0, 0.0]  # nats, supervised tokens, correct tokens already read from the device
        self.answer_bytes = 0  # of the evaluation set's answers; above 0: ``eval_nats_per_byte`` is measured as well
        self.own_schedule: Callable[[torch.optim.Optimizer, int, int], Any] | None = None  # of warmup and all steps
        self.extra_metrics: Callable[[], dict[str, float]] | None = None  # more ``eval_...`` numbers per evaluation

    def _shard_exactly(self, model: nn.Module) -> None:
        """FSDP as it is planned and reported, where accelerate's own settings differ. Before the model is sharded."""
        # else each rank would collect whole gradients over the micro-batches of a step
        self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
        plugin = self.accelerator.state.fsdp_plugin
        plugin.cpu_ram_efficient_loading = not saved_buffers(model)  # the first rank sends its weights: run.load_once
        if self.args.bf16:  # accelerate would sum gradients over ranks in bf16, and round every token's loss to it
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule by its name; one of the user's own takes the place of the constant one that upstream made."""
        if self.lr_scheduler is None and self.own_schedule is not None:
            constant = super().create_scheduler(num_training_steps, optimizer)
            warmup_steps = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler: Any = self.own_schedule(constant.optimizer, warmup_steps, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _shortcuts(self, model: PreTrainedModel) -> tuple[Choice, bool]:
        """The loss head, and whether padding needs no mask: what the model itself has been asked about.

        Of ranks that share a model out, only the first has its weights.
        """
        if self._sharded and self.accelerator.num_processes > 1:
            answers = [self._asked(model) if self.is_world_process_zero() else None]
            found: tuple[Choice, bool] = broadcast_object_list(answers)[0]
            return found
        return self._asked(model)

    def _asked(self, model: PreTrainedModel) -> tuple[Choice, bool]:
        choice = choose_loss_head(model, self.args.device.type, self._sharded)
        if choice.value == LABELLED_ROWS:
            add_loss_head(model)
        return proven(model, choice), self._may_drop_padding_mask(model.config) and ignores_padding(model)

    def _may_drop_padding_mask(self, config: Any) -> bool:
        right_padded = isinstance(self.data_collator, DataCollatorForLanguageModeling) and not self.padding_free
        attention = config._attn_implementation in {"sdpa", "eager", "sft_packed"}  # flash attention skips padding
        return right_padded and attention and not self.aux_loss_enabled

    def _zero_sums(self) -> Tensor:
        """[nats, supervised tokens, correct tokens, non-padding tokens] on the device."""
        exact = torch.float32 if self.args.device.type == "mps" else torch.float64
        return torch.zeros(4, dtype=exact, device=self.args.device)

    # ---- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean nats per supervised token, scaled like the Trainer's: for accumulation and for averaging over ranks."""
        inputs["use_cache"] = False
        num_tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        if self.drops_padding_mask:
            inputs.pop("attention_mask", None)
        sums = self._loss_sums(model, inputs)
        values = [sums.nats.detach(), sums.num_supervised, sums.num_correct, num_tokens]
        target = self._train_sums if self.model.training else self._eval_sums
        target += torch.stack([torch.as_tensor(value, device=target.device).to(target.dtype) for value in values])
        loss = self._scaled_loss(sums, num_items_in_batch)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{key: value for key, value in inputs.items() if key != "labels"})

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """As upstream: supervised tokens of a whole step. Its batches have all been read, so the last one is known."""
        for batch in batch_samples[-1:]:
            self._train_sums[3] -= unlabel_repeated_rows(self.accelerator, batch)
        for batch in batch_samples[:-1]:
            batch.pop(ROW_STARTS, None)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _loss_sums(self, model: nn.Module, inputs: dict[str, Any]) -> LossSums:
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        return loss_sums(model, inputs, self.loss_head.value)

    def _scaled_loss(self, sums: LossSums, num_items_in_batch: Tensor | int | None) -> Tensor:
        total = sums.num_supervised if num_items_in_batch is None else num_items_in_batch
        loss = sums.nats / torch.as_tensor(total, device=sums.nats.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the total counts all ranks, and DDP averages gradients
        if sums.aux_loss is not None:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * sums.aux_loss / steps
        return loss

    # ---- guard

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The last call before the optimizer step: stop here when this step would damage the weights.

        Raises TrainingFailed (status diverged) on every rank.
        """
        if self.accelerator.num_processes > 1 and model is self.model and not self._sharded:
            raise SftError("evaluate() before train() leaves gradients unaveraged over ranks; use train.eval_on_start")
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if hasattr(grad_norm, "full_tensor"):  # of sharded gradients
            grad_norm = grad_norm.full_tensor()
        if self.accelerator.scaler is not None:
            return grad_norm  # fp16: overflowing gradients are expected, the scaler skips such steps
        nats = self._train_sums[0]
        norm = torch.as_tensor(grad_norm, device=nats.device, dtype=nats.dtype)
        bad = self.accelerator.reduce((~torch.isfinite(torch.stack([nats, norm]))).sum())
        if bad.item():
            step = self.state.global_step + 1
            raise TrainingFailed(
                f"training diverged at step {step}: loss {'is' if torch.isfinite(nats) else 'is not'} finite, "
                f"gradient norm {norm.item():g}; stopped before the update, the weights are those of step {step - 1}",
                status="diverged",
            )
        return grad_norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As upstream, but a run resumed from the checkpoint of its last step does not train one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- what is reported

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._train_metrics())
        elif "eval_loss" in logs:  # runs are compared at the tokens of their evaluations
            self._read_train_sums()
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def _train_metrics(self) -> dict[str, float]:
        """Of the supervised tokens since the last log event, over accumulation and ranks."""
        self._read_train_sums()
        nats, num_supervised, num_correct = self._since_log
        self._since_log = [0.0, 0.0, 0.0]
        if num_supervised == 0:
            raise DataError(f"no supervised token up to step {self.state.global_step} since the last log event")
        return {
            "loss": nats / num_supervised,
            "mean_token_accuracy": num_correct / num_supervised,
            "num_tokens": self.state.num_input_tokens_seen,
            "num_supervised_tokens": int(num_supervised),
        }

    def _read_train_sums(self) -> None:
        """Move the sums to the host. The token count lives in the trainer state, so that it survives a resume."""
        *sums, num_tokens = self.accelerator.reduce(self._train_sums).tolist()
        self._since_log = [old + new for old, new in zip(self._since_log, sums, strict=True)]
        self.state.num_input_tokens_seen += int(num_tokens)
        self._train_sums.zero_()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card into every checkpoint; ours comes with the export, with the results in it."""

    @during(Phase.saving)
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._read_train_sums()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As upstream; a state dict gathered from sharded weights holds tied ones twice, and one of them is enough."""
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})
        if state_dict is not None and self._sharded:
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)

    @during(Phase.loading)
    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)

    @during(Phase.loading)
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)

    @during(Phase.loading)
    def _load_best_model(self) -> None:
        super()._load_best_model()

    # ---- evaluation

    @during(Phase.evaluation)
    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As upstream, with loss and token accuracy weighted by tokens over the whole set.

        Raises DataError when the set has no supervised token. A non-finite batch makes the loss non-finite.
        """
        self._eval_sums.zero_()
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        nats, num_supervised, num_correct, _ = self.accelerator.reduce(self._eval_sums).tolist()
        prefix = kwargs.get("metric_key_prefix", "eval")
        if num_supervised == 0:
            raise DataError(f"the {prefix} data has no supervised token: there is nothing to measure a loss on")
        output.metrics[f"{prefix}_loss"] = nats / num_supervised
        output.metrics[f"{prefix}_mean_token_accuracy"] = num_correct / num_supervised
        output.metrics[f"{prefix}_num_supervised_tokens"] = int(num_supervised)
        if self.answer_bytes and prefix == "eval":
            output.metrics["eval_nats_per_byte"] = nats / self.answer_bytes
        if self.extra_metrics is not None and prefix == "eval":
            output.metrics.update(self.extra_metrics())
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        unlabel_repeated_rows(self.accelerator, inputs)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


def build_trainer(
    config: Config,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    rows: tuple[Dataset, Dataset],
    callbacks: Sequence[TrainerCallback] = (),
) -> ExperimentTrainer:
    """The trainer of a run, of a check and of an evaluation. ``rows``: prepared rows to train and to evaluate on.

    Raises ``ConfigError`` for adapters on modules that the model does not have.
    """
    train, evaluated = rows
    try:
        trainer = ExperimentTrainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            peft_config=adapter_config(config),
            callbacks=list(callbacks),
        )
    except ValueError as error:
        if config.peft.method is PeftMethod.none or "Target modules" not in str(error):
            raise
        raise ConfigError(f"peft.target_modules={config.peft.target_modules}: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    if config.scheduler.name in SCHEDULES:
        trainer.own_schedule = partial(own_schedule, config.scheduler)
    return trainer
