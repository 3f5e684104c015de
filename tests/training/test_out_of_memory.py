"""Memory that runs out, in every form and phase: its class, what is tried again, and that the result stays the same."""

import errno
import gc
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaModel

from sft_experiments.data.formats import Answer, Prompt
from sft_experiments.errors import DataError, ModelError, TrainingFailed
from sft_experiments.launch.retry import run_trial
from sft_experiments.launch.trial import Trial
from sft_experiments.runs.plan_file import Choice, read_plan
from sft_experiments.runs.record import Phase, Record, Status, during, read_record
from sft_experiments.training import run as run_module
from sft_experiments.training import worker
from sft_experiments.training.generate import Together, answer
from sft_experiments.training.out_of_memory import is_out_of_memory, phase_of
from tests.conftest import SMALL_DEMO
from tests.launch.conftest import planned  # noqa: F401 a fixture

HELP = "\nCUDA kernel errors might be asynchronously reported at some other API call."


def accelerator_error(text: str, code: int) -> Exception:
    """As torch/csrc/Exceptions.cpp makes it: the message, then the code as an attribute."""
    error = torch.AcceleratorError(text)
    error.error_code = code  # type: ignore[attr-defined]
    return error


def nccl(last_error: str) -> Exception:
    return torch.distributed.DistBackendError(
        "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.29.3\n"
        f"ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n{last_error}"
    )


def raised_by(action: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        action()
    return caught.value


def raised_from(outer: Exception, inner: BaseException) -> BaseException:
    def wrap() -> None:
        raise outer from inner

    return raised_by(wrap)


def raised_while_handling(outer: Exception, inner: Exception, hidden: bool = False) -> BaseException:
    def clean_up() -> None:
        try:
            raise inner
        except type(inner):
            if hidden:
                raise outer from None
            raise outer  # noqa: B904 what is tested

    return raised_by(clean_up)


TOO_MUCH = 2**50
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
FORMS = {
    "CUDA's allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA's allocator, class lost": RuntimeError("Caught RuntimeError in DataLoader worker: CUDA out of memory. Tried"),
    "CUDA's runtime": accelerator_error("CUDA error: out of memory" + HELP, 2),
    "CUDA's runtime by its code alone": accelerator_error("", 2),
    "CUDA's runtime before AcceleratorError": RuntimeError("CUDA error: out of memory" + HELP),
    "CUDA's driver": RuntimeError("CUDA driver error: out of memory"),
    "cuBLAS": RuntimeError(CUBLAS),
    "cuDNN 8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "NCCL": nccl("Cuda failure 2 'out of memory'"),
    "NCCL without the code": nccl("Cuda failure 'out of memory'"),
    "NCCL's host memory": nccl("Call to mmap failed: Cannot allocate memory"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "Apple": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
    "torch on the host": raised_by(lambda: torch.empty(TOO_MUCH, dtype=torch.uint8)),
    "numpy": raised_by(lambda: numpy.empty(TOO_MUCH, dtype="u1")),
    "Python": MemoryError(),
    "C++": RuntimeError("std::bad_alloc"),
    "the system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "safetensors": OSError("Cannot allocate memory (os error 12)"),
    "inside an error of ours": raised_from(ModelError("model.name=x"), OSError(errno.ENOMEM, "no")),
    "while another error was handled": raised_while_handling(RuntimeError("cannot close"), RuntimeError(CUBLAS)),
}
OTHERS = {
    "another code": accelerator_error("CUDA error: CUDA-capable device(s) is/are busy or unavailable" + HELP, 46),
    "another code, whatever it says": accelerator_error("CUDA error: not 'CUDA out of memory'", 700),
    "cuDNN refuses": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ..."),
    "cuBLAS is not there": RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    ),
    "NCCL fails otherwise": nccl("Cuda failure 1 'invalid argument'"),
    "a kernel too large": RuntimeError("out of resource: shared memory, Required: 264288, Hardware limit: 232448."),
    "the disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "data that talk of it": DataError("train.jsonl, row 3: 'RuntimeError: CUDA out of memory. Tried to' has no role"),
    "a library that quotes data": ValueError("cannot convert 'CUDA out of memory' to int"),
    "one that was seen to": raised_while_handling(ValueError("other"), MemoryError(), hidden=True),
}


@pytest.mark.parametrize("error", FORMS.values(), ids=FORMS)
def test_memory_that_runs_out_is_known_in_every_form(error: BaseException) -> None:
    assert is_out_of_memory(error), repr(error)


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_nothing_else_is_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error), repr(error)


def test_the_innermost_phase_counts_also_where_the_error_was_wrapped() -> None:
    def nested() -> None:
        with during(Phase.training):
            try:
                with during(Phase.evaluation):
                    raise MemoryError
            except MemoryError as error:
                raise RuntimeError("an evaluation failed") from error

    assert phase_of(raised_by(nested)) is Phase.training  # the outer error is what the worker ended with
    assert phase_of(raised_from(RuntimeError("not noted"), raised_by(nested))) is Phase.training

    def noted_twice() -> None:
        with during(Phase.training), during(Phase.evaluation):
            raise MemoryError

    assert phase_of(raised_by(noted_twice)) is Phase.evaluation
    assert phase_of(MemoryError()) is None


# ---- a model whose forward pass fits only so many rows


class Memory:
    """Stands in for a device: a forward pass of ``phase`` with more than ``fits`` rows runs out of memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, phase: Phase, fits: int) -> None:
        self.held: list[weakref.ref[Any]] = []  # what the passes that did not fit had allocated
        self.kept = 0  # of it, what was not released before the next pass
        self.rows: list[int] = []  # of each pass of the phase
        forward = LlamaModel.forward

        def limited(model: Any, input_ids: Any = None, use_cache: Any = None, **others: Any) -> Any:
            now = Phase.training if model.training else Phase.generation if use_cache else Phase.evaluation
            if now is phase:
                self.kept += sum(one() is not None for one in self.held)
                self.rows.append(len(input_ids))
                if len(input_ids) > fits:
                    activations = torch.ones(3)
                    self.held.append(weakref.ref(activations))
                    error = accelerator_error("CUDA error: out of memory", 2)  # a cycle: error, traceback, frame, error
                    raise error
            return forward(model, input_ids=input_ids, use_cache=use_cache, **others)

        monkeypatch.setattr(LlamaModel, "forward", limited)


def answered(tokenizer: Any, model: Any, together: Together) -> list[Answer]:
    prompts = [Prompt([{"role": "user", "content": "ka to " * length}], "mi") for length in range(1, 8)]
    return answer(model, tokenizer, prompts, max_new_tokens=4, together=together)


def test_generation_goes_on_with_fewer_prompts_and_the_same_answers(
    tiny_tokenizer: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answered(tiny_tokenizer, tiny_model(), Together(size=3))
    memory, together = Memory(monkeypatch, Phase.generation, fits=3), Together(size=12)
    assert answered(tiny_tokenizer, tiny_model(), together) == expected
    assert together.size == 3
    assert memory.rows[:2] == [7, 3]  # half of what was there, not of what might have been
    assert memory.held
    assert memory.kept == 0


@pytest.mark.parametrize(("together", "tries"), [(Together(size=7), [7, 3, 1]), (Together(7, in_step=True), [7])])
def test_generation_that_cannot_go_back_raises_with_its_phase(
    tiny_tokenizer: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch, together: Together, tries: list[int]
) -> None:
    memory = Memory(monkeypatch, Phase.generation, fits=0)
    error = raised_by(lambda: answered(tiny_tokenizer, tiny_model(), together))
    assert is_out_of_memory(error)
    assert phase_of(error) is Phase.generation
    assert memory.rows == tries


# ---- whole runs


SETTINGS = [
    *SMALL_DEMO, "logger=none", "compute.isolate=false", "compute.threads=1", "train.max_steps=4", "train.eval_steps=2",
    "train.effective_batch_size=8", "dataset.demo.num_train=100", "dataset.demo.num_validation=40",
    "generation.exact_match_rows=20", "generation.max_new_tokens=4", "model.attn_implementation=sdpa",
]  # fmt: skip


@pytest.fixture
def same_signals() -> Iterator[None]:
    """A worker inside the test's process takes them over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def plan(planned: Callable[..., Trial], same_signals: None, tmp_path: Path) -> Callable[..., Trial]:  # noqa: F811
    """``plan(name, *overrides)``: a small run with an output folder of that name."""
    return lambda name, *overrides: planned(*SETTINGS, f"output_dir={tmp_path / name}", *overrides)


def weights(trial: Trial) -> bytes:
    return (trial.folder.model / "model.safetensors").read_bytes()


def samples(trial: Trial) -> str:
    return trial.folder.samples.read_text()


def assert_same_result(trial: Trial, other: Trial, record: Record, expected: Record) -> None:
    assert record.status is Status.completed
    assert record.objective == expected.objective
    assert record.metrics["eval/exact_match"] == expected.metrics["eval/exact_match"]
    assert weights(trial) == weights(other)
    assert samples(trial) == samples(other)


@pytest.mark.slow
def test_evaluation_goes_on_with_fewer_rows_and_the_same_result(
    plan: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = plan("small", "train.per_device_eval_batch_size=4"), plan("large")
    expected = run_trial(small)
    memory = Memory(monkeypatch, Phase.evaluation, fits=4)
    record = run_trial(large)
    assert_same_result(large, small, record, expected)
    assert record.attempts == 3  # 16, 8 and 4 per device
    assert "out of memory in evaluation with 8 per device: continued with 4, the same loss" in record.notes
    assert read_plan(large.folder).largest_eval_batch == 4
    assert read_plan(large.folder).batch == read_plan(small.folder).batch
    assert memory.kept == 0


@pytest.mark.slow
def test_training_goes_on_with_a_smaller_batch_in_the_same_process(
    plan: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = plan("small", "train.per_device_train_batch_size=2"), plan("large")
    expected = run_trial(small)
    memory = Memory(monkeypatch, Phase.training, fits=2)
    record = run_trial(large)
    assert_same_result(large, small, record, expected)
    assert record.attempts == 3  # 8, 4 and 2 per device
    assert read_plan(large.folder).largest_eval_batch is None
    assert memory.kept == 0


@pytest.mark.slow
def test_a_worker_that_ran_out_of_memory_holds_none_of_it(
    plan: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = plan("run", "train.eval_on_start=false")
    trial.write()
    memory = Memory(monkeypatch, Phase.training, fits=0)
    gc.disable()  # it would come, but some day
    try:
        assert worker.run(trial.folder) == 1
        (activations,) = memory.held
        assert activations() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_generation_in_a_run_goes_on_in_it_and_is_remembered(
    plan: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = plan("small"), plan("large")
    small = replace(small, plan=replace(small.plan, generation_batch=5))
    expected = run_trial(small)
    memory = Memory(monkeypatch, Phase.generation, fits=5)
    record = run_trial(large)
    assert_same_result(large, small, record, expected)
    assert record.attempts == 1
    assert "generation with 5 prompts at a time: more did not fit" in record.notes
    assert read_plan(large.folder).generation_batch == 5
    assert [rows for rows in memory.rows if rows > 5] == [20, 10]  # in the first evaluation, and never again


def no_memory(*_: Any, **__: Any) -> None:
    raise accelerator_error("CUDA error: out of memory", 2)


PLACES = {
    Phase.start: (worker, "device_name"),
    Phase.data: (run_module, "prepare_data"),
    Phase.loading: (AutoModelForCausalLM, "from_config"),
    Phase.saving: (PreTrainedModel, "save_pretrained"),
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PLACES, ids=[phase.name for phase in PLACES])
def test_where_no_batch_is_to_blame_nothing_is_tried_again(
    plan: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    trial = plan("run")
    monkeypatch.setattr(*PLACES[phase], no_memory)
    with pytest.raises(
        TrainingFailed, match=f"^out of memory in {phase.value}: .*; a smaller batch does not help: try"
    ):
        run_trial(trial)
    record = read_record(trial.folder)
    assert (record.status, record.attempts) == (Status.oom, 1)
    assert record.failure is not None
    assert (record.failure.kind, record.failure.phase) == ("AcceleratorError", phase.value)
    assert "\n" not in record.failure.message
    assert ("peft=lora" in record.failure.message) == (phase in {Phase.loading, Phase.saving})


# ---- the first call of CUDA


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update your driver"),
        accelerator_error("CUDA error: CUDA-capable device(s) is/are busy or unavailable" + HELP, 46),
    ],
    ids=["an old driver", "a card that another process has for itself"],
)
def test_a_worker_that_dies_in_its_first_cuda_call_leaves_its_reason(
    plan: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    trial = plan("run")
    trial = replace(trial, plan=replace(trial.plan, device=Choice("cuda", "as planned")))
    trial.write()
    monkeypatch.setattr(torch.cuda, "get_device_name", fail)
    assert worker.run(trial.folder) == 1
    record = read_record(trial.folder)
    assert (record.status, record.attempts) == (Status.failed, 1)
    assert record.started_at is not None
    assert record.failure is not None
    assert (record.failure.kind, record.failure.phase) == (type(error).__name__, "start-up")
    assert record.failure.message.startswith(str(error).split("\n", maxsplit=1)[0])
    assert "\n" not in record.failure.message
