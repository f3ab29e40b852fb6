"""What to do when memory runs out: halve the batch, until a single example does not fit either."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from kdsuite.errors import OutOfMemory
from kdsuite.runtime.device import empty_cache

Result = TypeVar("Result")
SIGNS = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA and MPS; CPU; CPU on Windows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on MPS and CPU it is a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


@dataclass
class BatchSize:
    """A batch size that is halved whenever memory runs out, and then stays so."""

    value: int

    def fit(self, work: Callable[[int], Result], device: torch.device, say: Callable[[str], None]) -> Result:
        """`work` with this batch size, again with half of it while memory runs out; OutOfMemory if 1 is too much."""
        while True:
            try:
                return work(self.value)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # outside of the handler: the error's frames no longer hold what filled the memory
            gc.collect()
            empty_cache(device)
            if self.value == 1:
                raise OutOfMemory(f"one example at a time is too much for the memory of {device}")
            self.value //= 2
            say(f"out of memory; going on with batches of {self.value}")
