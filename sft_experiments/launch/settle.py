"""What became of a worker that has ended: its record is completed here when the worker could not do it."""

import signal

from sft_experiments.errors import TrainingFailed
from sft_experiments.launch.ranks import await_ranks, first_failure, last_words, num_ranks
from sft_experiments.runs.folder import LOG_TAIL_LINES, RunFolder, folder_of, log_tail
from sft_experiments.runs.record import Failure, Record, Status, read_record


def settle(folder: RunFolder, exit_code: int) -> Record:
    """The final record of a worker that has ended; a worker that died without a word is recorded here."""
    record = read_record(folder)
    if (ranks := num_ranks(folder)) > 1:
        await_ranks(folder, ranks)
        return settle_ranks(folder, exit_code, ranks)
    if record.status in {Status.pending, Status.running}:
        _record_death(record, folder, exit_code, "the worker process", log_tail(folder))
    return record


def settle_ranks(folder: RunFolder, exit_code: int, ranks: int) -> Record:
    """The final record of several ranks: what the first to fail died of, whatever the others made of its end."""
    record, cause = read_record(folder), first_failure(folder) if exit_code > 0 else None
    if record.status in {Status.completed, Status.pruned}:
        return record
    tail = last_words(folder, ranks).splitlines()[-LOG_TAIL_LINES:]
    if cause is None:
        if record.status in {Status.pending, Status.running}:
            _record_death(record, folder, exit_code, "the launcher of the ranks", tail)
        return record
    own = read_record(folder_of(folder, cause.rank)) if folder_of(folder, cause.rank).record.is_file() else None
    if cause.exit_code > 0 and own is not None and own.failure is not None:
        record.fail(own.status, own.failure)
        record.write(folder)
    else:
        _record_death(record, folder, cause.exit_code, f"rank {cause.rank}", tail)
    return record


def _record_death(record: Record, folder: RunFolder, exit_code: int, who: str, tail: list[str]) -> None:
    """A process ended without a word about why."""
    kind = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    hint = "; the system kills the largest process when memory runs out" if kind == "SIGKILL" else ""
    said = f": {tail[-1].strip()}" if exit_code > 0 and tail else ""
    status = Status.killed if exit_code < 0 else Status.failed
    record.fail(status, Failure(kind, f"{who} ended with {kind}{hint}{said}", tail))
    record.write(folder)


def raise_for_failure(record: Record, code: int = 1) -> Record:
    """The record of a completed trial; ``TrainingFailed`` with the worker's exit code for any other."""
    if record.status is Status.completed:
        return record
    reason = record.failure.message if record.failure else "stopped; the same command goes on where it was"
    error = TrainingFailed(reason, record.status.value)
    error.exit_code = code if code > 0 else error.exit_code
    raise error
