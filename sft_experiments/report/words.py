"""The page's sentences about the results: the winner, its lead over the next, what is not comparable."""

from collections import Counter

from sft_experiments.results.collect import number
from sft_experiments.results.rank import Comparison
from sft_experiments.results.rows import setting_names
from sft_experiments.results.table import noise_sentence
from sft_experiments.runs.record import Status
from sft_experiments.values import format_count, format_score, format_seconds, format_value


def best_settings(comparison: Comparison) -> str:
    """``learning rate 2e-3, effective batch size 16``; the run's name when no setting varies."""
    if comparison.best is None:
        return ""
    names = setting_names(comparison)
    values = comparison.best.values
    pairs = [f"{names[key].replace('_', ' ')} {format_value(values.get(key))}" for key in comparison.keys]
    return ", ".join(pairs) or comparison.best.name


def best_score(comparison: Comparison) -> str:
    """``eval/loss 0.3061 ± 0.0131 over 3 seeds``."""
    best = comparison.best
    if best is None:
        return ""
    seeds = f" over {len(best.runs)} seeds" if len(best.runs) > 1 else ""
    return f"{comparison.metric} {format_score(best.mean, best.spread)}{seeds}"


def summary_sentences(comparison: Comparison) -> list[str]:
    """How sure the result is, what did not complete, what it cost."""
    sentences = [noise_sentence(comparison)] if comparison.cells else []
    sentences += _improvement(comparison)
    states = Counter(run.record.status for run in comparison.unranked)
    told = ", ".join(f"{count} {status.value}" for status, count in states.items() if status is not Status.completed)
    if told:
        sentences.append(f"Not ranked: {told}.")
    if best_seed_failures := comparison.best and [run for run in comparison.best.incomplete if run.record.failure]:
        sentences.append(f"Beware: {len(best_seed_failures)} seed(s) of the best configuration failed.")
    tokens = sum(number(run.record.metrics, "tokens") or 0 for run in comparison.runs)
    seconds = sum(number(run.record.timings, "total") or 0 for run in comparison.runs)
    if seconds:
        sentences.append(f"{format_count(tokens)} tokens were trained in {format_seconds(seconds)} of trial time.")
    return sentences


def is_unfinished(comparison: Comparison) -> int:
    """Trials still to come."""
    waiting = {Status.pending, Status.running, Status.preempted}
    return sum(run.record.status in waiting for run in comparison.unranked)


def _improvement(comparison: Comparison) -> list[str]:
    if len(comparison.cells) < 2:
        return []
    worst = comparison.cells[-1]
    return [f"The worst completed configuration reached {format_score(worst.mean, worst.spread)}."]
