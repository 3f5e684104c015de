"""Every chat template that TRL ships, over seven shapes of conversation: how its masks are found, or why it is refused.

    python benchmarks/template_matrix.py            # prints the table
    python benchmarks/template_matrix.py --write    # also puts it into docs/templates.md

The tokenizer is built here: a byte-level vocabulary plus every control token that the template writes, so that no
download is needed. Families whose real tokenizer joins text differently are proven again on the user's own data.
"""

import re
import sys
from pathlib import Path
from typing import Any

import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_experiments.data.encode import Encoder
from sft_experiments.data.formats import Conversation, Origin, RowFault, read_conversation
from sft_experiments.data.gate import check_conversation
from sft_experiments.data.proof import MaskProof
from sft_experiments.schema import SourceConfig, TrainOn

DOCUMENT = Path(__file__).parent.parent / "docs" / "templates.md"
MARK = "<!-- matrix -->"
METHODS = {"markers": "M", "training twin": "T", "prefixes": "P"}
CONTROL = re.compile(
    r"<\|[^|<>\n]*\|>|<\uff5c[^\uff5c<>\n]*\uff5c>|<\|?[A-Za-z_][\w:-]*\|?>|</[A-Za-z_]+>|\[/?[A-Z_]{3,}\]"
)

USER, ANSWER = {"role": "user", "content": "Where is Paris?"}, {"role": "assistant", "content": "It is in France."}
USER2, ANSWER2 = {"role": "user", "content": "And Rome?"}, {"role": "assistant", "content": "That one is in Italy."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "single": [USER, ANSWER],
    "multi-turn": [USER, ANSWER, USER2, ANSWER2],
    "system": [{"role": "system", "content": "Be brief."}, USER, ANSWER],
    "tool": [
        {"role": "user", "content": "Is it cold in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "minus 5 degrees"},
        {"role": "assistant", "content": "Yes, it is freezing."},
    ],
    "assistant first": [{"role": "assistant", "content": "Hello, ask me."}, USER, ANSWER],
    "two users": [USER, USER2, ANSWER2],
    "empty answer": [USER, {"role": "assistant", "content": ""}],
}


def build_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, plus the template's own control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=template
    )
    # One token each, as in the real tokenizer of the family.
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(CONTROL.findall(template)))})
    return tokenizer


def judge(encoder: Encoder, messages: list[dict[str, Any]]) -> str:
    """How one conversation's mask is found and proven, or the rule that refuses it and why."""
    source = SourceConfig(format="messages")
    conversation: Conversation = read_conversation({"messages": messages}, source, Origin("matrix", 1))
    for fault in check_conversation(conversation, re.compile("(?!)")):
        if fault.rule == "empty_assistant_turn":
            return f"{fault.rule}: {fault.what}"
    row = encoder.encode([conversation])[0]
    if isinstance(row, RowFault):
        return f"{row.rule}: {row.what}"
    fault = MaskProof(encoder.tokenizer, encoder.train_on).fault(row)
    return f"unproven_mask: {fault}" if fault else row.method


def matrix() -> dict[str, dict[str, str]]:
    """Template -> shape -> outcome, for the templates that models ship (the training twins belong to TRL)."""
    folder = Path(trl.__file__).parent / "chat_templates"
    outcomes = {}
    for file in sorted(folder.glob("*.jinja")):
        encoder = Encoder(build_tokenizer(file.read_text(encoding="utf-8")), TrainOn.assistant)
        outcomes[file.stem] = {shape: judge(encoder, messages) for shape, messages in SHAPES.items()}
    return outcomes


def is_proven(outcome: str) -> bool:
    return outcome in METHODS


def versions() -> str:
    return f"TRL {trl.__version__}, transformers {transformers.__version__}"


def as_markdown(outcomes: dict[str, dict[str, str]]) -> str:
    """The table, reasons numbered below it."""
    reasons: dict[str, int] = {}

    def cell(outcome: str) -> str:
        if is_proven(outcome):
            return METHODS[outcome]
        return f"({reasons.setdefault(outcome, len(reasons) + 1)})"

    lines = [f"| template | {' | '.join(SHAPES)} |", "|---" * (len(SHAPES) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(map(cell, row.values()))} |" for name, row in outcomes.items()]
    notes = [f"{number}. `{reason}`" for reason, number in reasons.items()]
    return "\n".join([*lines, "", f"Refused ({versions()}):", "", *notes])


def main() -> None:
    table = as_markdown(matrix())
    print(table)
    if "--write" in sys.argv:
        head, _, _ = DOCUMENT.read_text(encoding="utf-8").partition(MARK)
        DOCUMENT.write_text(f"{head}{MARK}\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
