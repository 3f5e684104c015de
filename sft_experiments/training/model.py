"""Load the model, or build it at random, in the precision and with the attention that the plan chose."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from sft_experiments.errors import ConfigError, MissingDependencyError, ModelError
from sft_experiments.plan.device import installed
from sft_experiments.schema import Config, ModelConfig, ModelSource, PeftMethod
from sft_experiments.training.tokenizer import first_line


def load_model(config: Config, tokenizer: PreTrainedTokenizerBase, precision: str, attention: str) -> PreTrainedModel:
    """A causal language model. Raises ``ModelError`` naming what is missing or does not fit."""
    dtype = torch.bfloat16 if precision == "pure_bf16" else torch.float32
    set_seed(config.train.seed)  # random weights and adapters depend on it
    if config.model.source is ModelSource.random:
        model = _random(config.model, tokenizer, dtype, attention)
    else:
        model = _pretrained(config, dtype, attention)
    model.config.use_cache = False
    return model


def architecture(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The transformers config of a model, without its weights."""
    if model.source is ModelSource.random:
        values = {"vocab_size": len(tokenizer), **model.config}
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        try:
            return AutoConfig.for_model(
                values.pop("model_type", "llama"), **values, **special, pad_token_id=tokenizer.pad_token_id
            )
        except (ValueError, TypeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"model.config: {reason}") from error
    try:
        return AutoConfig.from_pretrained(
            model.name, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.name={model.name}: {first_line(error)}") from error


def _random(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, attention: str
) -> PreTrainedModel:
    built = AutoModelForCausalLM.from_config(architecture(model, tokenizer), attn_implementation=attention, dtype=dtype)
    assert isinstance(built, PreTrainedModel)
    return built


def _pretrained(config: Config, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    model = config.model
    extra = {"quantization_config": nf4()} if config.peft.method is PeftMethod.qlora else {}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model.name,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=dtype,
            attn_implementation=attention,
            **extra,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.name={model.name}: {first_line(error)}") from error
    assert isinstance(loaded, PreTrainedModel)
    return loaded


def nf4() -> Any:
    """4-bit NormalFloat with double quantisation, as in the QLoRA paper (arXiv:2305.14314)."""
    if not installed("bitsandbytes"):
        raise MissingDependencyError("peft=qlora needs bitsandbytes: pip install 'sft-experiments[quant]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def adapter_config(config: Config) -> Any:
    """The PEFT config that TRL wraps the model with; None for full fine-tuning."""
    peft = config.peft
    if peft.method is PeftMethod.none:
        return None
    if not installed("peft"):
        raise MissingDependencyError(f"peft={peft.method.value} needs peft: pip install 'sft-experiments[peft]'")
    from peft import LoraConfig

    modules = peft.target_modules
    return LoraConfig(
        r=peft.r,
        lora_alpha=peft.lora_alpha,
        lora_dropout=peft.lora_dropout,
        target_modules=modules if modules == "all-linear" else [name.strip() for name in modules.split(",")],
        task_type="CAUSAL_LM",
    )
