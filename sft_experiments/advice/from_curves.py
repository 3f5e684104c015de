"""Advice from the best run's curves: overfitting, a learning rate too high or too low, too few steps.

Evaluations are those in metrics.jsonl, losses in nats per token. A change counts when it exceeds 1% of the loss and,
where the noise between seeds is known, twice that noise.
"""

import math
from collections.abc import Sequence
from typing import Any

from sft_experiments.advice.evidence import HIGH, LOW, MEDIUM, Advice, Evidence, Rule
from sft_experiments.advice.lines import line_through_best
from sft_experiments.results.curves import Curves, Point
from sft_experiments.results.recipes import train_command
from sft_experiments.runs.metrics import EVAL_LOSS, TRAIN_LOSS
from sft_experiments.values import format_score, format_value

RELATIVE_CHANGE = 0.01
PLATEAU_FALL = 0.02  # of the loss at the end of warmup
LARGE_GAP = 0.1  # eval loss - train loss, spec section 5
FEW_STEPS = 30  # optimizer steps after warmup
LONG_WARMUP = 0.3  # share of all steps
MAX_STEPS, EPOCHS = "train.max_steps", "train.num_train_epochs"


def overfitting(evidence: Evidence) -> Advice | None:
    """The eval loss has turned upwards for two evaluations or more while the train loss still falls."""
    losses = evidence.curves.series(EVAL_LOSS)
    lowest = _lowest(losses)
    if lowest is None or _is_first(losses, lowest) or lowest > len(losses) - 3:
        return None
    rise = losses[-1].value - losses[lowest].value
    if rise <= _threshold(evidence, losses[lowest].value) or not _train_loss_falls(
        evidence.curves, losses[lowest].step
    ):
        return None
    gap = _gap(evidence.curves, losses[-1])
    known_noise = evidence.comparison.noise is not None
    return Advice(
        rule="overfitting",
        finding=f"Overfitting: the eval loss rises after step {losses[lowest].step} while the train loss falls.",
        evidence=f"Eval loss {format_score(losses[lowest].value)} at step {losses[lowest].step} (epoch "
        f"{losses[lowest].epoch:.2g}), {format_score(losses[-1].value)} at the end"
        + ("." if gap is None else f"; gap to the train loss {gap:.3f}."),
        action="Keep the checkpoint of that step (it is restored by default), train less, or try weight "
        "decay 0.05 to 0.1, more data, or a lower learning rate.",
        command=train_command(evidence.run, _length_until(evidence, losses[lowest]) | {"train.weight_decay": 0.1}),
        confidence=HIGH if known_noise or (gap is not None and gap > LARGE_GAP) else MEDIUM,
    )


def rising_from_the_start(evidence: Evidence) -> Advice | None:
    """No evaluation is better than the first: the learning rate destroys what the model knew."""
    losses = evidence.curves.series(EVAL_LOSS)
    rate = evidence.run.values.get("train.learning_rate")
    if len(losses) < 3 or _lowest(losses) != 0 or not isinstance(rate, float):
        return None
    if losses[-1].value - losses[0].value <= _threshold(evidence, losses[0].value):
        return None
    lower = float(f"{rate / 3:.2g}")
    return Advice(
        rule="rising",
        finding="The eval loss rises from the first evaluation on.",
        evidence=f"Eval loss {format_score(losses[0].value)} at step {losses[0].step}, "
        f"{format_score(losses[-1].value)} at the end; learning rate {format_value(rate)}.",
        action=f"Divide the learning rate by 2 to 3, e.g. {format_value(lower)}.",
        command=train_command(evidence.run, {"train.learning_rate": lower}),
        confidence=HIGH,
    )


def plateau(evidence: Evidence) -> Advice | None:
    """Hardly any fall of the eval loss after warmup, and no evidence that a higher learning rate is worse."""
    losses = evidence.curves.series(EVAL_LOSS)
    warmup = _plan_steps(evidence, "warmup_steps") or 0
    after = [point for point in losses if point.step >= warmup]
    rate = evidence.run.values.get("train.learning_rate")
    if len(after) < 4 or not isinstance(rate, float) or _higher_rate_tried(evidence, rate):
        return None
    start, lowest = after[0].value, min(point.value for point in after)
    fall = (start - lowest) / abs(start) if start else 0.0
    if fall >= PLATEAU_FALL or after[-1].value - start > RELATIVE_CHANGE * abs(start):
        return None
    return Advice(
        rule="plateau",
        finding="The eval loss hardly moves after warmup.",
        evidence=f"Eval loss {format_score(start)} at step {after[0].step}, lowest {format_score(lowest)}: a fall of "
        f"{max(fall, 0):.1%} over {len(after)} evaluations; learning rate {format_value(rate)}.",
        action=f"Double the learning rate to {format_value(2 * rate)}.",
        command=train_command(evidence.run, {"train.learning_rate": 2 * rate}),
        confidence=LOW if after[0].step > 0 and losses[0].value > 2 * start else MEDIUM,  # it learned during warmup
    )


def too_few_steps(evidence: Evidence) -> Advice | None:
    """Most of the run is warmup, or little is left after it."""
    total, warmup = _plan_steps(evidence, "total_steps"), _plan_steps(evidence, "warmup_steps")
    if not total or warmup is None or (total - warmup >= FEW_STEPS and warmup <= LONG_WARMUP * total):
        return None
    shorter = {"scheduler.warmup_ratio": 0.03}
    if evidence.run.values.get("scheduler.warmup_steps") is not None:
        shorter = {"scheduler.warmup_steps": max(1, round(0.03 * total))}
    changes = _twice_the_length(evidence) if total - warmup < FEW_STEPS else shorter
    return Advice(
        rule="few_steps",
        finding=f"Only {total - warmup} of {total} optimizer steps come after warmup.",
        evidence=f"{total} steps, {warmup} of them warmup; below {FEW_STEPS} steps the schedule decides more than "
        "the settings do.",
        action="Train longer, take a smaller effective batch, or shorten the warmup.",
        command=train_command(evidence.run, changes),
        confidence=MEDIUM,
    )


def _length_until(evidence: Evidence, point: Point) -> dict[str, Any]:
    """The setting that ends training about there; ``max_steps`` wins over epochs where it is set."""
    if _max_steps(evidence) is not None:
        return {MAX_STEPS: point.step}
    return {EPOCHS: max(math.ceil(point.epoch * 2) / 2, 0.5)}


def _twice_the_length(evidence: Evidence) -> dict[str, Any]:
    """Nothing when the record tells neither steps nor epochs."""
    key, length = (MAX_STEPS, steps) if (steps := _max_steps(evidence)) else (EPOCHS, evidence.run.values.get(EPOCHS))
    return {key: 2 * length} if isinstance(length, int | float) else {}


def _max_steps(evidence: Evidence) -> int | None:
    value = evidence.run.values.get(MAX_STEPS)
    return value if isinstance(value, int) and value > 0 else None


def _lowest(losses: Sequence[Point]) -> int | None:
    return min(range(len(losses)), key=lambda index: losses[index].value) if losses else None


def _is_first(losses: Sequence[Point], index: int) -> bool:
    """The lowest loss comes before any training: that is no overfitting."""
    return losses[index].step == 0 or index == 0


def _threshold(evidence: Evidence, loss: float) -> float:
    noise = evidence.comparison.noise
    known = noise.standard_deviation if noise and evidence.comparison.metric == EVAL_LOSS else 0.0
    return max(RELATIVE_CHANGE * abs(loss), 2 * known)


def _train_loss_falls(curves: Curves, step: int) -> bool:
    """Whether the mean train loss of the second half after ``step`` is below that of the first half."""
    values = [point.value for point in curves.series(TRAIN_LOSS) if point.step >= step]
    half = len(values) // 2
    return half > 0 and sum(values[half:]) / len(values[half:]) < sum(values[:half]) / half


def _gap(curves: Curves, last: Point) -> float | None:
    train = curves.series(TRAIN_LOSS)
    return last.value - train[-1].value if train else None


def _plan_steps(evidence: Evidence, name: str) -> int | None:
    plan = evidence.run.plan
    value = getattr(plan.steps, name, None) if plan is not None else None
    return value if isinstance(value, int) else None


def _higher_rate_tried(evidence: Evidence, rate: float) -> bool:
    line = line_through_best(evidence.comparison, "train.learning_rate")
    return any(value > rate for value in [*line.values, *(value for value, _ in line.unranked)])


CURVE_RULES: tuple[Rule, ...] = (overfitting, rising_from_the_start, plateau, too_few_steps)
