"""Load the model, or build it at random, in the precision and with the attention that the plan chose."""

from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.initialization import no_init_weights

from sft_experiments.data.sources import build_demo_tokenizer
from sft_experiments.data.template import read_template
from sft_experiments.errors import ConfigError, MissingDependencyError, ModelError, first_line
from sft_experiments.plan.machine import installed, loads_bf16
from sft_experiments.schema import Config, ModelConfig, ModelSource, PeftMethod


def load_model(config: Config, tokenizer: PreTrainedTokenizerBase, precision: str, attention: str) -> PreTrainedModel:
    """A causal language model; with ``precision`` bf16 a base for adapters comes in bf16, one that is trained in fp32.

    Raises ``ModelError`` naming what is missing or does not fit.
    """
    dtype = torch.bfloat16 if loads_bf16(precision, config.peft.method) else torch.float32
    set_seed(config.train.seed)  # random weights and adapters depend on it
    if config.model.source is ModelSource.random:
        model = _random(config.model, tokenizer, dtype, attention)
    else:
        model = _pretrained(config, dtype, attention)
    model.config.use_cache = False
    return model


def hollow_model(config: Config, tokenizer: PreTrainedTokenizerBase, attention: str) -> PreTrainedModel:
    """The model without its values, for a rank that is sent its part of them: memory is reserved and never touched.

    Not on the meta device: accelerate tells an optimizer's weights apart by their addresses (1.15, _prepare_fsdp2).
    """
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(
            architecture(config.model, tokenizer),
            attn_implementation=attention,
            dtype=torch.float32,
            trust_remote_code=config.model.trust_remote_code,
        )
    assert isinstance(model, PreTrainedModel)
    model.tie_weights()
    model.config.use_cache = False
    return model.eval()


@dataclass(frozen=True)
class Outline:
    """All of a loaded model that a hollow one needs to be its equal, but for the values of its weights."""

    dtypes: dict[str, torch.dtype]
    generation_config: Any


def outline(model: PreTrainedModel) -> Outline:
    return Outline({name: one.dtype for name, one in model.named_parameters()}, model.generation_config)


def take_outline(hollow: PreTrainedModel, known: Outline) -> None:
    """Give a hollow model the number formats of the loaded one, and what its answers are generated with."""
    for name, one in hollow.named_parameters():
        one.data = torch.empty_like(one, dtype=known.dtypes[name])
    hollow.generation_config = known.generation_config


def saved_buffers(model: torch.nn.Module) -> set[str]:
    """Names of the buffers that are saved with the weights, such as an expert router's bias: few models have any."""
    return set(model.state_dict()) & {name for name, _ in model.named_buffers()}


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
    """Drawn in fp32 and then rounded: drawn in bf16 the weights would be others, and adapters belong to these."""
    config = architecture(model, tokenizer)
    built = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    assert isinstance(built, PreTrainedModel)
    for parameter in built.parameters():  # buffers, such as rotary frequencies, stay as a loaded model has them
        parameter.data = parameter.data.to(dtype)
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
    from transformers import BitsAndBytesConfig  # slow: only quantised runs need it

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
    from peft import LoraConfig  # slow: peft, seconds that a full fine-tuning need not wait

    modules = peft.target_modules
    return LoraConfig(
        r=peft.r,
        lora_alpha=peft.lora_alpha,
        lora_dropout=peft.lora_dropout,
        target_modules=modules if modules == "all-linear" else [name.strip() for name in modules.split(",")],
        task_type="CAUSAL_LM",
    )


def train_adapters_in_fp32(model: Any) -> None:
    """Undo TRL's cast of adapters on a quantised base to bf16, in which most updates of 2e-5 would be lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


DEMO = "demo"
SPARE_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<unk>")  # never part of an answer


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a run, ready for chat data. Raises ``ModelError`` when there is none at that place."""
    tokenizer = build_demo_tokenizer() if model.tokenizer == DEMO else _pretrained_tokenizer(model)
    if model.chat_template is not None:
        tokenizer.chat_template = read_template(model.chat_template)
    ensure_pad_token(tokenizer)
    return tokenizer


def _pretrained_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    name = model.tokenizer or model.name
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=model.revision if name == model.name else None, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.tokenizer={name}: no tokenizer there ({first_line(error)})") from error


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Padding needs a token. A reserved, unused one is preferred to the end token, which must keep its meaning."""
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    spare = next((token for token in SPARE_TOKENS if token in vocabulary), None)
    token = spare or tokenizer.eos_token
    if token is None:
        raise ModelError("the tokenizer has neither a pad token nor an end token; give model.tokenizer=... with one")
    tokenizer.pad_token = token


def carry_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> list[str]:
    """Let the model, wherever it is loaded, stop at the ids that answers end with; notes on what had to be mended.

    A published generation config may hold what transformers refuses to save: it would end the run at its first
    checkpoint. Of such a one what is for sampling only goes when it does not sample, and all of it when that is not it.
    """
    config = model.generation_config or GenerationConfig()
    notes = []
    if _refusal(config) is not None and not config.do_sample:
        for name in OF_SAMPLING:
            setattr(config, name, None)
        notes.append("generation_config: sampling settings beside do_sample=false were left out")
    if (refusal := _refusal(config)) is not None:
        config = GenerationConfig(eos_token_id=config.eos_token_id, bos_token_id=config.bos_token_id)
        notes = [f"generation_config: not a valid one, defaults took its place ({refusal})"]
    own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    known = {one for one in [*own, tokenizer.eos_token_id, *ends] if one is not None}
    config.eos_token_id = sorted(known) if len(known) > 1 else next(iter(known), None)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = config
    return notes


OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def _refusal(config: GenerationConfig) -> str | None:
    """Why transformers would not save it."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return first_line(error)
    return None


def check_loaded_model(model: Any, tokenizer: Any) -> list[str]:
    """Weights and vocabulary of a loaded model against its tokenizer; returns what is odd but can be trained.

    Raises ``ModelError`` for NaN or Inf weights, embeddings smaller than the vocabulary, and special ids outside of it.
    """
    _check_finite(model)
    rows = int(model.get_input_embeddings().weight.shape[0])
    needed = max(tokenizer.get_vocab().values()) + 1
    if rows < needed:
        raise ModelError(
            f"the embeddings hold {rows} tokens, the tokenizer needs {needed}: model and tokenizer do not belong "
            "together, or tokens were added without resizing"
        )
    return _special_id_notes(model.config.get_text_config(), tokenizer, rows)


def _check_finite(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            raise ModelError(f"the weights are damaged: {name} holds {count} NaN or Inf values")


def _special_id_notes(config: Any, tokenizer: Any, rows: int) -> list[str]:
    """Disagreements about bos, eos and pad: the tokenizer's win, as the data are made with it."""
    notes = []
    for kind in ("bos", "eos", "pad"):
        ours, theirs = getattr(tokenizer, f"{kind}_token_id"), getattr(config, f"{kind}_token_id", None)
        known = theirs if isinstance(theirs, list) else [theirs]
        if any(token is not None and not 0 <= token < rows for token in known):
            raise ModelError(f"the model's {kind}_token_id={theirs} is outside its {rows} embeddings")
        if ours is not None and theirs is not None and ours not in known:
            notes.append(f"{kind}_token_id: the tokenizer has {ours}, the model {theirs}; the tokenizer's is used")
    return notes
