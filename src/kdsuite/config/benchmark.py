"""What the efficiency benchmark measures; without torch, so that reading a configuration stays quick."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdsuite.config.section import Count, Section

Scheme = Literal["int8", "int4"]
WARMUP_TOKENS = 3  # of an untimed generation
MANY_THREADS = 4  # measured besides "all" where there are more: what a small machine would do


class BenchmarkSettings(Section):
    """Sizes and repetitions of the efficiency measurements."""

    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(1, 4, 8), description="sequences generated at once, a row each; default [1, 4, 8]"
    )
    new_tokens: Annotated[int, Field(ge=2)] = Field(
        default=32, description="tokens generated per sequence, exactly, whatever the model says; default 32"
    )
    blocks: Count | None = Field(
        default=None,
        description="times that all models are measured in turn (A B C A B C …); default: 5, or fewer, at least 2, so "
        "that all of it takes a fifth of the plan at most, as far as two blocks can",
    )
    warmup: Annotated[int, Field(ge=0)] = Field(
        default=1, description="untimed generations of three tokens before each timed one; default 1"
    )
    threads: Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        default=None, description="CPU thread counts, rows for each; default: all, and 4 where there are more"
    )
    answers: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="examples of the reported split that are answered, one at a time, in every block, for the "
        "seconds per answer; 0 leaves that out; default: 4 for each of the blocks, 20 where these are given",
    )
    memory: bool = Field(default=True, description="measure memory too, in a fresh process per model; default true")
    quantize: tuple[Scheme, ...] = Field(
        default=("int8", "int4"),
        description="weight-only quantizations of the best students: int8, int4 (NF4); default both",
    )
    quantize_top_k: Annotated[int, Field(ge=0)] = Field(
        default=1, description="best configurations per task and student that are also measured quantized; default 1"
    )

    def thread_counts(self, device: str, most: int) -> tuple[int, ...]:
        """CPU threads to measure with, of so many; they matter only on a CPU: elsewhere there is one set of rows."""
        if device != "cpu":
            return (most,)
        return self.threads or ((most, MANY_THREADS) if most > MANY_THREADS else (most,))

    def schemes(self, rank: int, proxy: bool) -> tuple[Scheme, ...]:
        """In what fewer bits a student's best configuration (rank 0), the next … are measured; where there is a `proxy`
        of it, the best in 4 bits in any case."""
        asked = list(self.quantize) if rank < self.quantize_top_k else []
        return tuple(dict.fromkeys([*asked, "int4"] if proxy and rank == 0 else asked))
