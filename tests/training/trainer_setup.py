"""How the tests of this folder build a trainer, and models of other architectures."""

import copy
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from trl import SFTConfig, SFTTrainer


def make_trainer(
    kind: type[SFTTrainer], model: Any, rows: Any, tokenizer: Any, folder: Path, eval_rows: Any = None, **changes: Any
) -> SFTTrainer:
    """A trainer on the CPU in fp32: four rows per micro-batch, every step logged, nothing saved."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "activation_checkpointing": False,
        "max_steps": 1,
        "max_length": 512,
        "learning_rate": 0.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = SFTConfig(**{**settings, **changes})
    return kind(
        model=model, args=args, train_dataset=rows, eval_dataset=eval_rows, processing_class=copy.deepcopy(tokenizer)
    )


# Whose attention is causal, in layers that sdpa and sft_packed compute.
CAUSAL = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")


def small_config(model_type: str, **changes: Any) -> Any:
    """Two narrow layers of the named architecture with grouped query heads."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 320, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2}
    return AutoConfig.for_model(model_type, **{**sizes, **heads, "bos_token_id": None, **changes})
