"""When to log and when to evaluate. Shares of the training give every cell of a grid the same number of looks."""

from typing import Union

from sft_experiments.errors import ConfigError


def resolve_interval(key: str, value: Union[int, float], total_steps: int) -> int:
    """An interval in optimizer steps from a number of steps (>= 1) or a share of all steps (above 0, below 1)."""
    if value <= 0 or (value > 1 and value != int(value)):
        raise ConfigError(f"{key}={value}: must be a whole number of steps, or a share of the training between 0 and 1")
    return max(1, round(value * total_steps)) if value < 1 else int(value)


def evaluation_steps(eval_steps: Union[int, float], total_steps: int) -> list[int]:
    """The optimizer steps after which to evaluate and save; the last step is always one of them.

    A share spreads the looks evenly: 0.2 of 47 steps gives 9, 19, 28, 38, 47.
    """
    if eval_steps < 1:
        looks = max(1, round(1 / eval_steps)) if eval_steps > 0 else 0
        if not looks:
            raise ConfigError(f"train.eval_steps={eval_steps}: must be a number of steps or a share between 0 and 1")
        return sorted({max(1, round(total_steps * look / looks)) for look in range(1, looks + 1)})
    interval = resolve_interval("train.eval_steps", eval_steps, total_steps)
    return sorted({*range(interval, total_steps + 1, interval), total_steps})


def rung_step(share: float, eval_steps: Union[int, float], total_steps: int, warmup_steps: int) -> int:
    """The step of a rung: the first planned evaluation after ``share`` of the training and after warmup."""
    earliest = max(round(share * total_steps), warmup_steps + 1)
    return next((step for step in evaluation_steps(eval_steps, total_steps) if step >= earliest), total_steps)
