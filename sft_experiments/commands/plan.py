"""`sft plan` and `sft recommend`: what a run or sweep will do and cost, before it does anything. No torch."""

import json
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Optional

from sft_experiments.commands import Command
from sft_experiments.commands.plan_view import as_dict, show_outlook
from sft_experiments.config.hydra import Composer, composed
from sft_experiments.config.recorded import recorded_run
from sft_experiments.launch.trial import plan_run, plan_trial
from sft_experiments.schema import SearchMethod
from sft_experiments.sweep.outlook import Outlook, outlook_of
from sft_experiments.sweep.planning import plan_search, plan_sweep
from sft_experiments.values import parse_size


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--from", dest="run_folder", metavar="RUN_DIR", type=Path, help="a recorded run, with changes")
    parser.add_argument("--device-memory", help="memory of one device to judge against, e.g. 80GiB")
    parser.add_argument("--price", type=_price, help="price of one device per hour, in any currency")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def _plan(parsed: Namespace) -> int:
    """One run, or the cells of a sweep."""
    found = outlook(parsed.settings, parsed.run_folder, parsed.device_memory, parsed.price)
    if parsed.json:
        print(json.dumps(as_dict(found), indent=2, default=str))
    else:
        show_outlook(found)
    return 0


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise ArgumentTypeError(f"{text}: must be a number of at least 0")
    return price


def outlook(
    settings: list[str],
    run_folder: Optional[Path] = None,
    device_memory: Optional[str] = None,
    price: Optional[float] = None,
) -> Outlook:
    """Compose, plan and forecast. Raises ``ConfigError`` and ``DataError`` as a launch would."""
    device_bytes = parse_size(device_memory) if device_memory else None
    if run_folder is not None:
        return outlook_of(None, [plan_trial(*recorded_run(run_folder, settings))], device_bytes, price)
    with composed(settings) as composer:
        if not composer.is_sweep:
            return outlook_of(None, [plan_run(composer)], device_bytes, price)
        if composer.master.sweep.search is SearchMethod.bayes:
            return _outlook_of_search(composer, device_bytes, price)
        planner, cells = plan_sweep(composer)
    return outlook_of(planner.sweep, list(cells.values()), device_bytes, price)


def _outlook_of_search(composer: Composer, device_bytes: Optional[float], price: Optional[float]) -> Outlook:
    """The points that a Bayesian search has proposed, and examples of those to come."""

    from sft_experiments.sweep.search.bayes import look_ahead  # slow: imports optuna, 0.4 s

    search = look_ahead(*plan_search(composer))
    examples = outlook_of(search.sweep, search.examples, device_bytes, price)
    found = outlook_of(search.sweep, search.proposed, device_bytes, price)
    return replace(found, search=search, examples=examples)


COMMANDS = {
    "plan": Command(
        _plan,
        _add_arguments,
        usage="sft plan [--from RUN_DIR] [--device-memory 80GiB] [--price 2.5] [--json] [key=value ...] [key=a,b ...]"
        " [sweep=...]",
        takes_settings=True,
    )
}
