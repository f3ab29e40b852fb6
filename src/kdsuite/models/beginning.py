"""What all texts of a task begin with is read once: system turn and template, 40 % of a prompt of SST-2's.

Its keys and values, of one row, stand before every row of the batches that are read while nothing changes the model.
`models.check` finds out which models say the same then. There is no gradient of what was read before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kdsuite.models.forward import causal_lm, traits_of
from kdsuite.runtime.device import bucket
from kdsuite.runtime.ranks import together
from kdsuite.tasks.batching import Batch
from kdsuite.tasks.encoding import Encoded

LEAST = 128  # tokens that need not be read, in all; a pass of its own takes as long as reading so many more


@contextmanager
def read_once(model: Any, examples: Sequence[Encoded], least: int = LEAST) -> Iterator[None]:
    """Inside, what these examples all begin with is read once, where the model allows it and at least so many tokens
    are saved. They are all that the model is to read, and it must not change meanwhile.

    Where the cut lies depends on all of them, so that what a model says of one does not depend on which are left.
    """
    ids, traits, device = _beginning(examples), traits_of(model), causal_lm(model).device
    ids = ids[: len(ids) - len(ids) % bucket(device)]
    longest = max(map(len, examples), default=0)
    if not traits.beginning or not traits.sees(longest) or not ids or len(ids) * (len(examples) - 1) < least:
        yield
        return
    _set(model, ids)
    try:
        yield
    finally:
        _set(model, [])


def _beginning(examples: Sequence[Encoded]) -> list[int]:
    """What all of them begin with, before the first token that something is predicted from."""
    if not examples:
        return []
    smallest, largest = (pick(e.input_ids for e in examples) for pick in (min, max))  # between them lie all others
    pairs = zip(smallest, largest, strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return smallest[: min(common, *(e.sources[0] for e in examples))]


@together
def _set(model: Any, ids: list[int]) -> None:
    causal_lm(model).kdsuite_beginning = Beginning(ids) if ids else None


class Beginning:
    """The first ids of every row, and what a model keeps of them from the first time on that it is needed."""

    def __init__(self, ids: list[int]):
        self.ids, self._past = ids, None

    def before(self, lm: Any, batch: Batch) -> DynamicCache:
        """What is to stand before the rows of a batch. ValueError for a batch that begins otherwise."""
        ids, size = torch.tensor([self.ids], device=batch.input_ids.device), len(self.ids)
        if batch.columns.min() < size or (batch.input_ids[:, :size] != ids).any():
            raise ValueError("a batch does not begin with what all texts were said to begin with")
        if self._past is None:
            past: Any = DynamicCache()
            lm(input_ids=ids, past_key_values=past, use_cache=True)
            past.layers = [_Before(layer.keys, layer.values) for layer in past.layers]
            self._past = past
        return self._past


class _Before(DynamicLayer):
    """Keys and values of one row, [1, heads, S, width], that stand before those of every row; these are not kept."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._before = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (before.expand(len(key_states), -1, -1, -1) for before in self._before)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
