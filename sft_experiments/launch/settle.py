"""Run one trial in a process of its own and tell what became of it. The same function serves every launcher."""

import signal

from sft_experiments.launch.ranks import await_ranks, first_failure, last_words, num_ranks
from sft_experiments.runs.folder import LOG_TAIL_LINES, RunFolder, folder_of, log_tail
from sft_experiments.runs.record import Failure, Record, Status, read_record, utc_now


def settle(folder: RunFolder, exit_code: int) -> Record:
    """The final record of a worker that has ended; a worker that died without a word is recorded here."""
    record = read_record(folder)
    if (ranks := num_ranks(record)) > 1:
        await_ranks(folder, ranks)
        return settle_ranks(folder, exit_code, ranks)
    if record.status in {Status.pending, Status.running}:
        _record_death(record, folder, exit_code, "the worker process", log_tail(folder))
    return record


def settle_ranks(folder: RunFolder, exit_code: int, ranks: int) -> Record:
    """The same for several ranks: what the one that failed first died of, whatever the others made of its end."""
    record, cause = read_record(folder), first_failure(folder, ranks) if exit_code > 0 else None
    if record.status in {Status.completed, Status.pruned}:
        return record
    tail = last_words(folder, ranks).splitlines()[-LOG_TAIL_LINES:]
    if cause is None:
        if record.status in {Status.pending, Status.running}:
            _record_death(record, folder, exit_code, "the launcher of the ranks", tail)
        return record
    rank, code = cause
    own = read_record(folder_of(folder, rank)) if folder_of(folder, rank).record.is_file() else None
    if code > 0 and own is not None and own.failure is not None:
        record.status, record.failure = own.status, own.failure
        record.write(folder)
    else:
        _record_death(record, folder, code, f"rank {rank}", tail)
    return record


def _record_death(record: Record, folder: RunFolder, exit_code: int, who: str, tail: list[str]) -> None:
    """A process ended without a word about why."""
    record.status = Status.killed if exit_code < 0 else Status.failed
    kind = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    hint = "; the system kills the largest process when memory runs out" if kind == "SIGKILL" else ""
    said = f": {tail[-1].strip()}" if exit_code > 0 and tail else ""
    record.failure = Failure(kind, f"{who} ended with {kind}{hint}{said}", tail)
    record.finished_at = utc_now()
    record.write(folder)
