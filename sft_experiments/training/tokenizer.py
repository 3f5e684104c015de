"""Load the tokenizer, give it a template when one is named, and a pad token when it has none."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sft_experiments.data.demo import build_demo_tokenizer
from sft_experiments.errors import ConfigError, ModelError
from sft_experiments.schema import ModelConfig

DEMO = "demo"
SPARE_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<unk>")  # never part of an answer


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a run, ready for chat data. Raises ``ModelError`` when there is none at that place."""
    tokenizer = build_demo_tokenizer() if model.tokenizer == DEMO else _pretrained(model)
    if model.chat_template is not None:
        tokenizer.chat_template = read_template(model.chat_template)
    ensure_pad_token(tokenizer)
    return tokenizer


def _pretrained(model: ModelConfig) -> PreTrainedTokenizerBase:
    name = model.tokenizer or model.name
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=model.revision if name == model.name else None, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.tokenizer={name}: no tokenizer there ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_template(name: str) -> str:
    """A chat template by shipped name or from a .jinja file."""
    from sft_experiments.data.template import shipped_template  # the shipped ones belong to the data room

    file = Path(name).expanduser()
    if file.suffix in {".jinja", ".j2"}:
        if not file.is_file():
            raise ConfigError(f"model.chat_template={name}: no such file")
        return file.read_text(encoding="utf-8")
    return shipped_template(name)


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
