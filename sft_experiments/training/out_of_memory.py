"""Whether an error means that memory ran out, on a device or on the host, in whatever form it arrives.

A class or an error code decides where there is one. CUDA's libraries, the driver, NCCL and the host's allocator leave
only a text: those are listed, each with the source that prints it.
"""

import errno
import os
from collections.abc import Iterator
from typing import Optional

import torch

from sft_experiments.runs.record import Phase, noted_phase

MEMORY_ALLOCATION = 2  # cudaErrorMemoryAllocation (CUDA Runtime API, cudaError_t); hipErrorOutOfMemory is 2 as well

TEXTS = (
    "CUDA out of memory",  # torch c10/cuda/CUDACachingAllocator.cpp, where the class was lost on the way
    "HIP out of memory",  # the same file, on ROCm
    "XPU out of memory",  # torch c10/xpu/XPUCachingAllocator.cpp
    "MPS backend out of memory",  # torch aten/src/ATen/mps/MPSAllocator.mm, a plain RuntimeError
    "CUDA error: out of memory",  # torch c10/cuda/CUDAException.cpp before there was AcceleratorError
    "HIP error: out of memory",  # the same file, on ROCm
    "CUDA driver error: out of memory",  # torch c10/cuda/driver_api.h: expandable segments
    "out of memory (2)",  # torch/cuda/__init__.py, CudaError: calls of the CUDA runtime from Python
    "CUBLAS_STATUS_ALLOC_FAILED",  # torch aten/src/ATen/cuda/Exceptions.h; cuBLAS: its workspace or handle
    "CUDNN_STATUS_ALLOC_FAILED",  # the same file; cuDNN 8
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # cuDNN 9, cudnnStatus_t
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",  # cuDNN 9, cudnnStatus_t
    "Cuda failure 'out of memory'",  # NCCL src/include/checks.h, told by torch's DistBackendError as "Last error"
    "Cuda failure 2 'out of memory'",  # the same as NCCL 2.20 prints it
    "Triton Error [CUDA]: out of memory",  # triton third_party/nvidia/backend/driver.c: loading a kernel
    "DefaultCPUAllocator: can't allocate memory",  # torch c10/core/impl/alloc_cpu.cpp
    "DefaultCPUAllocator: not enough memory",  # the same file, on Windows
    "std::bad_alloc",  # C++, passed on by torch as a RuntimeError
    os.strerror(errno.ENOMEM),  # the C library: mmap of torch and safetensors, system calls of NCCL, a DataLoader
)
# Not among them: CUDNN_STATUS_NOT_SUPPORTED and CUBLAS_STATUS_NOT_INITIALIZED, which have other causes as well, and
# Triton's "out of resource", which is a kernel too large for the device's shared memory, whatever the batch.


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in this error or in one that it was raised from."""
    return any(_says_so(one) for one in causes(error))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, torch.AcceleratorError) and hasattr(error, "error_code"):
        return bool(error.error_code == MEMORY_ALLOCATION)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    # Of any other class, the text may quote the user's data.
    return isinstance(error, (RuntimeError, OSError)) and any(text in str(error) for text in TEXTS)


def phase_of(error: BaseException) -> Optional[Phase]:
    """What was being done when it was raised; None when that is unknown."""
    return next((phase for one in causes(error) if (phase := noted_phase(one)) is not None), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that a traceback shows above it."""
    seen: set[int] = set()
    one: Optional[BaseException] = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
