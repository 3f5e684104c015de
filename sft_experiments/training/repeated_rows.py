"""Over several ranks accelerate fills the last batch of an epoch up with rows from its start: they must not count.

Each rank gets full batches, dealt out in turn, so it is known how many rows of its last one are the first of their
kind; the others lose their labels. So training and evaluation see every row once, as with one process.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from accelerate import Accelerator
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

ROW_STARTS = "row_starts"  # in a batch of packs: where each begins, and the end
IGNORED = -100


@dataclass
class WithRowStarts:
    """TRL's collator puts packs behind each other; its ``cu_seq_lens_q`` tells documents apart, not packs."""

    collate: DataCollatorForLanguageModeling

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(rows)
        lengths = (len(row["input_ids"]) for row in rows)
        batch[ROW_STARTS] = torch.tensor([0, *accumulate(lengths)])
        return batch


def unlabel_repeated_rows(accelerator: Accelerator, inputs: dict[str, Any]) -> int:
    """Take the labels of repeated rows away, when ``inputs`` is this rank's last batch of the data that is read now.

    Returns how many tokens these rows have, padding left out.
    """
    loader = accelerator.gradient_state
    starts = inputs.pop(ROW_STARTS, inputs.get("cu_seq_lens_q"))  # padding-free: one row behind the other
    if accelerator.num_processes == 1 or not loader.end_of_dataloader:
        return 0
    num_rows = len(inputs["labels"]) if starts is None else len(starts) - 1
    # Accelerate's own remainder is lost when a resumed run skips the rows that it has read.
    remainder = len(loader.active_dataloader.dataset) % (num_rows * accelerator.num_processes)
    first_repeated = max(0, remainder - accelerator.process_index * num_rows)
    if remainder == 0 or first_repeated >= num_rows:
        return 0
    if starts is None:
        inputs["labels"][first_repeated:] = IGNORED
        return int(inputs["attention_mask"][first_repeated:].sum())
    inputs["labels"][:, starts[first_repeated] :] = IGNORED
    return int(starts[-1] - starts[first_repeated])
