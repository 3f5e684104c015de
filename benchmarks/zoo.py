"""Every causal language model of the installed transformers, built small, and whether its own loss is trained.

    python -m benchmarks.zoo                 # prints the table; or some: python -m benchmarks.zoo llama gemma2
    python -m benchmarks.zoo --write         # also puts it into docs/models.md

For each: the loss head that is chosen and proven, and its loss beside the cross entropy of the saved and reloaded
model's own logits; whether padding needs its mask; whether packed documents stay apart, or packing is refused.
"""

import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from sft_experiments.errors import SftError, first_line
from sft_experiments.training.attention import choose_attention, ignores_padding, probe_packing
from sft_experiments.training.loss_head import LABELLED_ROWS, add_loss_head, choose_loss_head, loss_sums, proven

DOCUMENT = Path(__file__).parent.parent / "docs" / "models.md"
MARK = "<!-- zoo -->"
LARGEST = 10_000_000  # weights: what is not that small by the sizes below is not built
# One architecture or another has a name of its own for each of these.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts"), 2),
    **{"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 128, "is_decoder": True},
    **{"num_experts_per_tok": 1, "moe_intermediate_size": 16, "n_routed_experts": 4},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
# Where all of them do not fit together: without these.
LEFT_OUT: tuple[tuple[str, ...], ...] = (
    (),
    ("head_dim",),
    ("num_key_value_heads",),
    ("head_dim", "num_key_value_heads"),
)
SAME = 1e-5  # largest relative difference of losses in fp32


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture; ``fault``: a difference that nobody would be told of."""

    model_type: str
    head: str = ""
    padding: str = ""
    packing: str = ""
    not_built: str = ""
    fault: str = ""


def build(model_type: str, attention: str = "eager") -> PreTrainedModel:
    """A small model with random weights that has been run once. Raises the last error when none can be had."""
    error: Exception = ValueError("no sizes fit")
    for left_out in LEFT_OUT:
        try:
            config = AutoConfig.for_model(model_type, **{k: v for k, v in SIZES.items() if k not in left_out})
            with torch.device("meta"):
                weights = AutoModelForCausalLM.from_config(config, attn_implementation=attention).num_parameters()
            if weights > LARGEST:
                raise ValueError(f"{weights / 1e6:,.0f} million weights with the sizes that it takes")
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
            model(input_ids=torch.randint(3, 60, (2, 12)), use_cache=False)
        except Exception as raised:  # noqa: BLE001 of 200 authors
            error = raised
        else:
            assert isinstance(model, PreTrainedModel)
            return model.eval()
    raise error


def look_at(model_type: str) -> Outcome:
    try:
        model = build(model_type)
    except Exception as error:  # noqa: BLE001 as above
        return Outcome(model_type, not_built=f"{type(error).__name__}: {first_line(error)}"[:120])
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    choice = choose_loss_head(model, "cpu")
    if choice.value == LABELLED_ROWS:
        add_loss_head(model)
    choice = proven(model, choice)
    padding = "not needed" if ignores_padding(model) else "kept"
    if "not proven" in choice.reason:
        return Outcome(model_type, f"{choice.value}, not proven", padding, packing(model))
    return Outcome(model_type, choice.value, padding, packing(model), fault=difference(model, choice.value))


def difference(model: PreTrainedModel, head: str) -> str:
    """How the loss that is trained differs from the cross entropy of the model that is saved; empty: it does not."""
    ids = torch.randint(3, 120, (3, 20), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :7] = -100
    with torch.no_grad():
        sums = loss_sums(model, {"input_ids": ids, "labels": labels, "use_cache": False}, head)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        logits = again.eval()(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    own = float(F.cross_entropy(logits.float(), labels[:, 1:].flatten()))
    ours = float(sums.nats / sums.num_supervised)
    return "" if abs(ours - own) <= SAME * abs(own) else f"trains {ours:.5f}, the saved model has {own:.5f}"


def packing(plain: PreTrainedModel) -> str:
    """The attention with which documents are packed, or that and why they are not."""
    try:
        chosen = choose_attention("auto", True, "cpu", "fp32", plain.config).value
    except SftError:
        return "refused"
    try:
        model = build(plain.config.model_type, chosen)
        collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
        return "refused by its probe" if probe_packing(model, collate).leaks else chosen
    except KeyError:  # it takes no attention but its own: training/run.py
        return "refused"
    except Exception as error:  # noqa: BLE001 as above
        return f"fails ({type(error).__name__})"


def as_markdown(outcomes: list[Outcome]) -> str:
    built = [one for one in outcomes if not one.not_built]
    lines = [
        f"transformers {transformers.__version__}: {len(built)} of {len(outcomes)} architectures built small.",
        "",
        "| architecture | loss head | padding mask | packing |",
        "|---|---|---|---|",
        *(f"| {one.model_type} | {one.head} | {one.padding} | {one.packing} |" for one in built),
        "",
        "Not built with these sizes: " + ", ".join(one.model_type for one in outcomes if one.not_built) + ".",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Returns the number of architectures with a difference that nobody would be told of."""
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    chosen = [name for name in arguments if not name.startswith("-")] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    outcomes = [look_at(name) for name in chosen]
    table = as_markdown(outcomes)
    print(table)
    if "--write" in arguments:
        head = DOCUMENT.read_text(encoding="utf-8").partition(MARK)[0]
        DOCUMENT.write_text(f"{head}{MARK}\n{table}\n", encoding="utf-8")
    faults = [one for one in outcomes if one.fault]
    for one in faults:
        print(f"{one.model_type}: {one.fault}", file=sys.stderr)
    return len(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
