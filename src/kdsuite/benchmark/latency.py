"""Clock readings of a model, and the figures made of them.

Decoding is greedy, over the key-value cache, written out: it never stops early, so that a model that likes to
stop is not faster by it, and it reads the clock after every token, once the device is done with it: when a user
would see the token. The ids of the prompt are random: what they say costs no time.

Whatever else a machine does makes a measurement longer, never shorter, and on a shared machine it can do so for
a whole block. So the time of a token is the fastest of its repeats (every block decodes the same tokens at the
same places), and the figure that models are compared by is the median over the tokens. The plain median and the
95th percentile over all readings stand beside it: they say what a user of this machine saw.

The task's own measure of speed is seconds per answer, from an example's text to the finished answer. Everything
that a user waits for counts: the prompt is rendered and tokenized, label words are scored or an answer is
generated until it stops, then decoded, cleaned and chosen. One example at a time, as in an application that
answers a person. Unlike the decoding time it depends on what a model says: one that comes to the point is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn

from kdsuite.errors import ModelError
from kdsuite.evaluate.predict import EvaluationSet, predict
from kdsuite.runtime.device import now
from kdsuite.runtime.process import garbage_kept
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.example import Example, Task

MS = 1e3  # per second


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
    """Generate exactly `new_tokens` for each of `prompts` [batch, length] and time every token.

    ModelError where that is longer than a model's table of positions, which a GPU would tell by ending the process.
    """
    length, positions = prompts.shape[1] + new_tokens - 1, getattr(model.config, "max_position_embeddings", None)
    tables = sum(isinstance(module, nn.Embedding) for module in model.modules())
    if tables > 1 and isinstance(positions, int) and 0 < positions < length:
        told = f"a prompt of {prompts.shape[1]} tokens and {new_tokens} new ones; set benchmark.new_tokens"
        raise ModelError(f"it has {positions} positions, too few for {told}")
    ids, generated = prompts, []
    state = "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"
    kept: dict[str, Any] = {}  # keys and values, or the state of a state-space model
    with garbage_kept():  # nor walked through while the clock runs
        clock = [now(prompts.device)]
        for _ in range(new_tokens):
            output = model(input_ids=ids, **kept, use_cache=True, logits_to_keep=1)
            ids, kept = output.logits[:, -1:].argmax(-1), {state: getattr(output, state)}  # [batch, 1]
            generated.append(ids)
            clock.append(now(prompts.device))
    first, *steps = np.diff(clock).tolist()
    return Timing(first, steps, torch.cat(generated, dim=1))


def answer_seconds(model: Any, chat: ChatTokenizer, task: Task, examples: Sequence[Example]) -> list[float]:
    """Seconds for each example, alone in its batch. RunError if the model's scores are not finite."""
    seconds = []
    for example in examples:
        with garbage_kept():
            started = now(model.device)
            predict(model, chat, EvaluationSet.of(task, chat, [example]), batch_size=1)
            seconds.append(now(model.device) - started)
    return seconds


def spread_out(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples at equal distances: neighbours are often of one article."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def undisturbed_step(timings: Sequence[Timing]) -> float:
    """Seconds per token: the fastest repeat of each token, the median over tokens."""
    return float(np.median(np.min([timing.steps for timing in timings], axis=0)))


def figures(timings: Sequence[Timing]) -> dict[str, float]:
    """Columns of repeats of one generation: milliseconds until the first token and per further token; tokens per
    second of whole generations."""
    first, steps = [t.first_token for t in timings], [t.steps for t in timings]
    (batch_size, new_tokens), step = timings[0].tokens.shape, undisturbed_step(timings)
    return {
        "new_tokens": new_tokens,
        "first_token_ms": min(first) * MS,
        "median_first_token_ms": float(np.median(first)) * MS,
        "p95_first_token_ms": float(np.percentile(first, 95)) * MS,
        "decode_ms_per_token": step * MS,
        "median_ms_per_token": float(np.median(steps)) * MS,
        "p95_ms_per_token": float(np.percentile(steps, 95)) * MS,
        "tokens_per_second": batch_size * new_tokens / (min(first) + step * (new_tokens - 1)),
    }


def seconds_per_answer(repeats: Sequence[Sequence[float]]) -> float | None:
    """Mean over the examples of the fastest repeat of each, from [repeats, examples]; None without any."""
    return float(np.mean(np.min(repeats, axis=0))) if repeats else None


def spread_percent(values: Sequence[float]) -> float | None:
    """By how many percent the largest exceeds the smallest; None for fewer than two."""
    return 100 * (max(values) - min(values)) / min(values) if len(values) > 1 else None
