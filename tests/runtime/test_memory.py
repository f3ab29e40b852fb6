"""When memory runs out the batch is halved, down to a single example, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch

from kdsuite.errors import OutOfMemory
from kdsuite.runtime.memory import BatchSize, is_out_of_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 9.07 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("not enough memory"), False),
    ],
)
def test_what_the_devices_say_when_memory_runs_out_is_known(error: BaseException, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it


def test_the_allocator_of_this_machine_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_batch_is_halved_until_it_fits_and_stays_so() -> None:
    tried, said, batch = [], [], BatchSize(16)

    def work(size: int) -> str:
        tried.append(size)
        if size > 4:
            torch.empty(1 << 60, dtype=torch.uint8)
        return "done"

    assert batch.fit(work, CPU, said.append) == batch.fit(work, CPU, said.append) == "done"
    assert tried == [16, 8, 4, 4]
    assert said == [f"out of memory on cpu; going on with batches of {size}" for size in (8, 4)]


def test_a_single_example_that_does_not_fit_is_an_error_of_its_own() -> None:
    with pytest.raises(OutOfMemory, match="one example at a time is too much for the memory of cpu"):
        BatchSize(2).fit(lambda size: torch.empty(1 << 60, dtype=torch.uint8), CPU, lambda line: None)


def test_other_errors_are_not_tried_again() -> None:
    tried = []

    def work(size: int) -> None:
        tried.append(size)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        BatchSize(8).fit(work, CPU, lambda line: None)
    assert tried == [8]
