"""From clock readings to figures.

Whatever else a machine does makes a measurement longer, never shorter, and on a shared machine it can do so
for a whole block. So the time of a token is the fastest of its repeats (every block decodes the same tokens
at the same places), and the figure that models are compared by is the median over the tokens. The plain
median and the 95th percentile over all readings stand beside it: they say what a user of this machine saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MS = 1e3  # per second


@dataclass
class Samples:
    """Seconds measured for one variant at one size, a repeat per block, and the tokens generated each time."""

    first: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)  # [repeats, tokens after the first]
    new_tokens: int = 0

    @property
    def undisturbed_step(self) -> float:
        """Seconds per token: the fastest repeat of each token, the median over tokens."""
        return float(np.median(np.min(self.steps, axis=0)))

    def times(self, batch_size: int) -> dict[str, float]:
        """Columns in milliseconds, until the first token and per further token; tokens per second of whole
        generations."""
        first, step = min(self.first), self.undisturbed_step
        seconds = first + step * (self.new_tokens - 1)
        return {
            "new_tokens": self.new_tokens,
            "first_token_ms": first * MS,
            "median_first_token_ms": float(np.median(self.first)) * MS,
            "p95_first_token_ms": float(np.percentile(self.first, 95)) * MS,
            "decode_ms_per_token": step * MS,
            "median_ms_per_token": float(np.median(self.steps)) * MS,
            "p95_ms_per_token": float(np.percentile(self.steps, 95)) * MS,
            "tokens_per_second": batch_size * self.new_tokens / seconds,
        }


def seconds_per_answer(repeats: Sequence[Sequence[float]]) -> float | None:
    """Mean over the examples of the fastest repeat of each, from [repeats, examples]; None without any."""
    return float(np.mean(np.min(repeats, axis=0))) if repeats else None


def spread_percent(values: Sequence[float]) -> float | None:
    """By how many percent the largest exceeds the smallest; None for fewer than two."""
    return 100 * (max(values) - min(values)) / min(values) if len(values) > 1 else None
