"""When memory runs out: the same work again in smaller batches."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from kdsuite.errors import OutOfMemory
from kdsuite.runtime.device import empty_cache

Result = TypeVar("Result")

OUT_OF_MEMORY = (RuntimeError, MemoryError, OutOfMemory)  # what to catch, and then to ask `is_out_of_memory`
# MPS, the CPU and CUDA's libraries have no error of their own
WORDS = ("out of memory", "not enough memory", "can't allocate memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


@dataclass
class BatchSize:
    """A batch size that is lowered when memory runs out, and that stays so for the next work."""

    value: int

    def fit(self, work: Callable[[int], Result], device: torch.device, say: Callable[[str], None]) -> Result:
        """`work(batch size)`, again with half of it as often as memory runs out; OutOfMemory where 1 is too much.

        For work whose batches are sorted by length, longest first: it runs out at the beginning or not at all.
        """
        while True:
            try:
                return work(self.value)
            except OUT_OF_MEMORY as error:
                if not is_out_of_memory(error):
                    raise
            gc.collect()  # outside of the handler, which keeps the tensors of the failed attempt
            empty_cache(device)
            if self.value == 1:
                raise OutOfMemory(f"one example at a time is too much for the memory of {device}")
            self.value = -(-self.value // 2)
            say(f"out of memory on {device}; going on with batches of {self.value}")
