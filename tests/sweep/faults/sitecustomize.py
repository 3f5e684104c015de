"""Python imports this module by itself where its folder is on PYTHONPATH: a worker of a test gets its faults so.

The faults stand in the JSON file that PLANTED_FAULTS names, a list of
``{"in": {argument: value}, "at": step | "evaluation" | "end", "do": name of a function below, "once": bool}``.
"""

import json
import os
import signal
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

WATCHED = "sft_experiments.training.callbacks"


def fail(**about):
    raise ValueError("planted error")


def leave(**about):
    sys.exit(7)


def leave_at_once(**about):
    os._exit(11)


def segfault(**about):
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed(**about):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(**about):
    while True:
        time.sleep(60)


def linger(**about):
    time.sleep(0.3)


def run_out_of_memory(micro_batch, fits, **about):
    import torch

    if micro_batch > fits:
        raise torch.OutOfMemoryError(f"planted: {micro_batch} examples do not fit")


def evaluate_too_much(eval_batch, fits, **about):
    run_out_of_memory(eval_batch, fits)


class Planter:
    """Adds the faults to a callback that every training has, once its module has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name != WATCHED:
            return None
        spec = PathFinder.find_spec(name, path)
        run_module = spec.loader.exec_module

        def run_and_plant(module):
            run_module(module)
            module.StopOnSignal.on_step_begin = lambda self, args, state, control, **kwargs: act(
                args, state.global_step
            )
            module.StopOnSignal.on_prediction_step = lambda self, args, state, control, **kwargs: act(
                args, "evaluation"
            )
            module.StopOnSignal.on_train_end = lambda self, args, state, control, **kwargs: act(args, "end")

        spec.loader.exec_module = run_and_plant  # type: ignore[method-assign]
        return spec


def act(arguments, step):
    file = Path(os.environ["PLANTED_FAULTS"])
    for number, fault in enumerate(json.loads(file.read_text())):
        concerns = all(getattr(arguments, name) == value for name, value in fault.get("in", {}).items())
        now = fault["at"] == step or (fault["at"] == "every step" and step != "evaluation")
        if concerns and now and not (fault.get("once") and happened(file, number)):
            batches = arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size
            globals()[fault["do"]](micro_batch=batches[0], eval_batch=batches[1], fits=fault.get("fits"))


def happened(file, number):
    """Whether this fault struck before, in any process; it has after this call."""
    try:
        file.with_name(f"{file.name}.{number}").touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


if "PLANTED_FAULTS" in os.environ:
    sys.meta_path.insert(0, Planter())
