"""The verdicts of the sanity check: from measurements to pass, warn or fail, each with the next step to take."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from sft_experiments.data.formats import Answer

NOISE = 2.0  # standard errors of the paired difference: below, a fall in loss may be chance
WARN_ABOVE, FAIL_ABOVE = 2.0, 4.0  # times the first training loss
LONGEST_UNIT = 8  # tokens of a phrase that is looked for when it repeats
REPETITIONS = 4  # in a row, at the end of an answer


@dataclass(frozen=True)
class Item:
    """One line of the report."""

    name: str
    verdict: str  # pass, note, warn or fail; a note says that nothing was learned from it
    found: str
    next_step: str = ""


def worst(items: Sequence[Item]) -> str:
    """The verdict of the whole check."""
    verdicts = {item.verdict for item in items}
    return next((verdict for verdict in ("fail", "warn") if verdict in verdicts), "pass")


def judge_loss(before: Sequence[float], after: Sequence[float]) -> Item:
    """The loss of the same rows before and after a few steps: one mean loss per row, in nats."""
    first, last = statistics.fmean(before), statistics.fmean(after)
    found = f"{first:.4f} before, {last:.4f} after, on the same {len(before)} rows"
    name = "loss on fixed rows"
    if not math.isfinite(first):
        return Item(name, "fail", found, "the weights are damaged, or the data hold what the model cannot read")
    if not math.isfinite(last):
        return Item(name, "fail", found, "training diverged: lower train.learning_rate by 10")
    if first == 0 or last == 0:
        return Item(name, "fail", found, "a loss of exactly 0: nothing is supervised, or answers stand in the prompts")
    falls = [one - other for one, other in zip(before, after, strict=True)]
    if not any(falls):
        return Item(name, "fail", found, "nothing changed: is the model frozen, or train.learning_rate far too low?")
    error = statistics.stdev(falls) / math.sqrt(len(falls)) if len(falls) > 1 else 0.0
    found += f" (difference {statistics.fmean(falls):+.4f}, noise {error:.4f})"
    if statistics.fmean(falls) > NOISE * error:
        return Item(name, "pass", found)
    if statistics.fmean(falls) < -NOISE * error:
        return Item(name, "fail", found, "the loss rises: lower train.learning_rate by 3 to 10")
    return Item(name, "warn", found, "no clear fall in so few steps: try --steps 40, or a higher train.learning_rate")


def judge_trajectory(losses: Sequence[float]) -> Optional[Item]:
    """The training loss of each step, on other rows every time: noisy, but it never multiplies in good health.

    A model that exploded may land below its first loss again, with constant answers.
    """
    if not losses:
        return None
    highest = max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)
    found = f"from {losses[0]:.4g}, at most {highest:.4g}"
    if highest <= WARN_ABOVE * losses[0]:
        return Item("loss by step", "pass", found)
    step = "the loss explodes on the way: lower train.learning_rate by 3 to 10, or warm up longer"
    return Item("loss by step", "warn" if highest <= FAIL_ABOVE * losses[0] else "fail", found, step)


def judge_labels(rows: Sequence[dict[str, list[int]]], end_ids: set[int]) -> list[Item]:
    """Tokenised rows: labels are their own tokens, something is supervised, and answers learn to end."""
    pairs = [list(zip(row["input_ids"], row["labels"], strict=True)) for row in rows]
    wrong = sum(label not in {-100, token} for row in pairs for token, label in row)
    supervised = sum(label != -100 for row in pairs for _, label in row)
    total = sum(map(len, pairs))
    share = f"{supervised} of {total} tokens supervised ({supervised / max(1, total):.0%})"
    if wrong:
        found = f"{wrong} labels are not the token at their place"
        return [Item("labels", "fail", found, "labels must equal input_ids or be -100; the shift happens in the loss")]
    if not supervised:
        return [Item("labels", "fail", share, "nothing would be learned: see dataset.train_on and dataset.max_length")]
    items = [Item("labels", "pass", share)]
    if end_ids:
        ending = sum(any(label in end_ids for _, label in row) for row in pairs)
        found = f"{ending} of {len(pairs)} rows supervise an end-of-turn token"
        step = "answers are cut or the template leaves their end out; the model would not learn to stop"
        verdict = "pass" if ending == len(pairs) else ("warn" if ending else "fail")
        items.append(Item("end of turn in the labels", verdict, found, "" if verdict == "pass" else step))
    return items


def judge_end_probability(before: Optional[float], after: Optional[float]) -> Optional[Item]:
    """The mean probability of the end-of-turn token where the data end a turn."""
    if before is None or after is None:
        return None
    found = f"{before:.4f} before, {after:.4f} after, where the data end a turn"
    falls = after < before / 2
    return Item(
        "end-of-turn probability",
        "warn" if falls else "pass",
        found,
        "the model unlearns to stop: look at the supervised rows (--show-rows 3)" if falls else "",
    )


def garble_of(answer: Answer) -> Optional[str]:
    """What is wrong with a generation: empty, only special tokens, repeating, never ending; None when nothing is."""
    if not answer.ids:
        return "empty"
    if not answer.text.strip():
        return "only special tokens" if len(answer.ids) > 1 else "empty"
    if _repeats(answer.ids):
        return "repeats itself"
    return None if answer.ended else "does not end"


def _repeats(ids: list[int]) -> bool:
    """Whether the last tokens are the same phrase several times over."""
    for unit in range(1, LONGEST_UNIT + 1):
        needed = unit * REPETITIONS
        tail = ids[-needed:]
        if len(tail) == needed and tail == tail[:unit] * REPETITIONS:
            return True
    return False


def judge_answers(before: Sequence[Answer], after: Sequence[Answer]) -> Optional[Item]:
    """Generations relative to before: a base model rambles in good health, so they never fail alone."""
    if not after:
        return None
    faults = [[garble_of(answer) for answer in answers] for answers in (before, after)]
    counts = [sum(fault is not None for fault in found) for found in faults]
    kinds = sorted({fault for fault in faults[1] if fault})
    found = f"{counts[0]} of {len(before)} garbled before, {counts[1]} after" + (
        f" ({', '.join(kinds)})" if kinds else ""
    )
    if counts == [len(before), len(after)]:
        return Item("generations", "note", f"{found}; not informative: all were garbled before training")
    more = counts[1] > counts[0]
    step = "read the answers below; a lower train.learning_rate, or a template that does not fit the model"
    return Item("generations", "warn" if more else "pass", found, step if more else "")
