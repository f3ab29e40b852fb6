"""Time to first token and time per further token, of a fixed number of tokens.

The loop is greedy decoding over the key-value cache, written out: it never stops early, so that a model that
likes to stop is not faster by it, and it reads the clock after every token, once the device is done with it:
when a user would see the token. The ids of the prompt are random: what they say costs no time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from kdsuite.runtime.device import synchronize

WARMUP_TOKENS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one generation, and what it generated ([batch, new tokens])."""

    first_token: float
    steps: list[float]  # one per token after the first
    tokens: torch.Tensor


def random_prompts(model: Any, batch_size: int, length: int) -> torch.Tensor:
    """Prompts of real token ids [batch, length], the same for every model of one vocabulary size."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch_size, length), generator=generator)
    return ids.to(model.device)


@torch.inference_mode()
def timed_generation(model: Any, prompts: torch.Tensor, new_tokens: int) -> Timing:
    """Generate exactly `new_tokens` for each of `prompts` [batch, length] and time every token."""
    ids, generated = prompts, []
    state = "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"
    kept: dict[str, Any] = {}  # keys and values, or the state of a state-space model
    with uncollected():
        clock = [now(prompts.device)]
        for _ in range(new_tokens):
            output = model(input_ids=ids, **kept, use_cache=True, logits_to_keep=1)
            ids, kept = output.logits[:, -1:].argmax(-1), {state: getattr(output, state)}  # [batch, 1]
            generated.append(ids)
            clock.append(now(prompts.device))
    seconds = [after - before for before, after in zip(clock, clock[1:], strict=False)]
    return Timing(seconds[0], seconds[1:], torch.cat(generated, dim=1))


def warm_up(model: Any, prompts: torch.Tensor, times: int) -> None:
    """Generate a few tokens untimed, so that kernels are chosen and caches hold this model's weights."""
    for _ in range(times):
        timed_generation(model, prompts, WARMUP_TOKENS)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector, which walks all objects of all libraries, out of what is timed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def now(device: torch.device) -> float:
    """Seconds of a clock that is read when the device has done all its work."""
    synchronize(device)
    return time.perf_counter()
