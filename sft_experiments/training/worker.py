"""Turn a run folder into a trained model: `python -m sft_experiments.training.worker RUN_FOLDER`.

Reads config.yaml, plan.json and record.json; everything it learns goes back into the folder. Steps, in order:
tokenizer -> data -> model -> trainer -> train -> evaluate -> save. A trial on several devices is several workers,
started by torch.distributed.run: all do the same steps, and the first (rank 0) leaves what the folder shows.
"""

import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from signal import SIGTERM
from typing import Optional, TextIO

import datasets
import torch
import transformers
from accelerate.utils.memory import clear_device_cache

from sft_experiments.config.load import load_plugins, read_config
from sft_experiments.errors import ConfigError, SftError, TrainingFailed
from sft_experiments.files import hold
from sft_experiments.plan.machine import cpu_count, describe_environment, stay_near_gpu
from sft_experiments.runs.folder import LAUNCHER_VARIABLE, RunFolder, folder_of, log_tail
from sft_experiments.runs.plan_file import read_plan
from sft_experiments.runs.record import Failure, Phase, Record, Status, during, read_record
from sft_experiments.secrets import redact_text
from sft_experiments.terminal import LastingStream, lasting_output
from sft_experiments.training.callbacks import StopOnSignal, drop_training_state
from sft_experiments.training.out_of_memory import is_out_of_memory, phase_of
from sft_experiments.training.process_group import end_with_launcher, meet, num_ranks, part, silenced, this_rank
from sft_experiments.training.run import Run, train_in_folder

SIGNAL_EXIT = 128
NOWHERE = Path(os.devnull)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ORPHAN_POLL_SECONDS = 1.0
LONGEST_REASON = 400  # characters in the record of a message that is not ours; the log holds all of it


def main(arguments: list[str]) -> int:
    """The command line of a worker: one run folder."""
    if len(arguments) != 1:
        print("usage: python -m sft_experiments.training.worker RUN_FOLDER", file=sys.stderr)
        return 2
    folder = RunFolder(Path(arguments[0]))
    if this_rank() > 0:
        sys.stdout = NOWHERE.open("w")  # to the end of the process; the first rank says it all
    try:
        with lasting_output(), copy_output_to(folder.log):
            return run(folder)
    except SftError as error:
        print(f"sft worker: {error}", file=sys.stderr)
        return error.exit_code


def run(folder: RunFolder, threads: Optional[int] = None) -> int:
    """Train what the folder describes, record the outcome, return the exit code (128 + signal when stopped by one)."""
    trial, folder = folder, folder_of(folder, this_rank())
    with hold(folder.lock, "its training"):
        record = read_record(trial)
        config = read_config(trial) if this_rank() == 0 else silenced(read_config(trial))
        plan = read_plan(trial)
        if num_ranks() != plan.batch.num_devices:
            planned = plan.batch.num_devices
            raise ConfigError(f"{folder.path}: planned for {planned} processes, and this is one of {num_ranks()}")
        _silence_libraries()
        torch.set_num_threads(max(1, (threads or plan.threads) // num_ranks()))
        stop = StopOnSignal()
        if threading.current_thread() is threading.main_thread():
            stop.install()
        _stop_when_orphaned()
        started = time.monotonic()
        record.start(describe_environment(plan.device.value, torch.get_num_threads()))
        record.write(folder)
        code = _train(Run(folder, config, plan, record), stop)
        if stop.signal is not None and record.status is not Status.completed:
            record.stop()
            if code != 0 or num_ranks() == 1:  # the launcher of ranks takes any such code for a failure
                code = SIGNAL_EXIT + stop.signal
        record.notes = list(dict.fromkeys(record.notes))  # a resumed run meets some of them again
        record.timings["total"] = round(record.timings.get("total", 0.0) + time.monotonic() - started, 3)
        record.write(folder)
        if record.status is Status.completed and this_rank() == 0:
            drop_training_state(folder.checkpoints)
        if record.status is Status.oom:  # this very process may try again (compute.isolate=false)
            clear_device_cache(garbage_collection=True)
        return code


def _train(run: Run, stop: StopOnSignal) -> int:
    """Meet the other ranks and the device, train, and part; an error becomes part of the record. The exit code."""
    record, device = run.record, run.plan.device.value
    try:
        with during(Phase.start):
            load_plugins(run.config.plugins)
            if device == "cuda":
                stay_near_gpu(this_rank())
                torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))
            meet(device)
            record.environment["device"] = device_name(device)
            record.write(run.folder)
        train_in_folder(run, stop)
        part()
        return 0
    except Exception as error:  # noqa: BLE001 the process boundary: whatever happened becomes part of the record
        return _record_failure(record, error, run.folder)


def device_name(device: str) -> str:
    """What the device calls itself. Of CUDA, the first call: a driver or a card that cannot be used is found here."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def _silence_libraries() -> None:
    """Their progress bars and notices would garble ours; their errors still come through."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _record_failure(record: Record, error: Exception, folder: RunFolder) -> int:
    """Classify the error, keep the traceback in the log, put the reason into the record.

    One of our errors goes to the log only: the command that started this worker ends with it.
    """
    status, phase = status_of(error), phase_of(error)
    message = redact_text(str(error).strip() or type(error).__name__)
    if isinstance(error, SftError):
        print(message, file=sys.stderr.file if isinstance(sys.stderr, Copy) else sys.stderr)
    else:
        print(redact_text(traceback.format_exc()), file=sys.stderr)
        message = "; ".join(line.strip() for line in message.splitlines())[:LONGEST_REASON]
    sys.stderr.flush()
    if status is Status.oom:
        message = f"out of memory in {phase.value if phase else 'an unknown phase'}: {message}"
    record.fail(status, Failure(type(error).__name__, message, log_tail(folder), phase and phase.value))
    return error.exit_code if isinstance(error, SftError) and status is not Status.oom else 1


def status_of(error: Exception) -> Status:
    """The failure class of an exception."""
    if is_out_of_memory(error):
        return Status.oom
    return Status(error.status) if isinstance(error, TrainingFailed) else Status.failed


def _stop_when_orphaned() -> None:
    """A trial whose sweep was killed saves a checkpoint and ends, instead of training on unseen."""
    parent, launcher = parent_process(), os.environ.pop(LAUNCHER_VARIABLE, None)
    if num_ranks() > 1:
        _watch(lambda: end_with_launcher(int(launcher) if launcher else None))
    elif parent is not None:
        _watch(lambda: wait([parent.sentinel]))
    elif launcher is not None:
        _watch(lambda: _await_other_parent(int(launcher)))


def _watch(await_end: Callable[[], object]) -> None:
    def stop_at_the_end() -> None:
        await_end()
        os.kill(os.getpid(), SIGTERM)

    threading.Thread(target=stop_at_the_end, daemon=True, name="orphan watch").start()


def _await_other_parent(launcher: int) -> None:
    """A process whose parent dies gets another one."""
    while os.getppid() == launcher:
        time.sleep(ORPHAN_POLL_SECONDS)


@contextmanager
def copy_output_to(log: Path) -> Iterator[None]:
    """Everything printed also goes to the run's log; the terminal keeps its colours and progress bar."""
    with log.open("a", encoding="utf-8", buffering=1) as file:
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (stream if goes_to(stream, file) else Copy(stream, file) for stream in streams)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams


def goes_to(stream: TextIO, file: TextIO) -> bool:
    """Whether a stream already is that file, or nothing that anyone sees."""
    try:
        where = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False  # a test's buffer
    return os.path.samestat(where, os.fstat(file.fileno())) or os.path.samestat(where, NOWHERE.stat())


class Copy(LastingStream):
    """A text stream that also writes to a file, which has it all even when nobody sees the stream any more."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        super().__init__(stream)
        self.file = file

    def write(self, text: str) -> int:
        self.file.write(COLOURS.sub("", text))
        return super().write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
