"""What is done with clock readings: chance may lengthen some of them, the figures hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kdsuite.benchmark.latency import Timing, figures, seconds_per_answer, spread_out, spread_percent


def timings(first: float, steps: Sequence[list[float]], batch_size: int = 1) -> list[Timing]:
    return [Timing(first, some, torch.zeros(batch_size, len(some) + 1)) for some in steps]


def disturbed(seed: int, blocks: int = 5, tokens: int = 15) -> list[Timing]:
    """A model of 1 ms per token on a machine where others take every second reading and a whole block."""
    random = np.random.default_rng(seed)
    steps = 1e-3 + 1e-5 * random.random((blocks, tokens))
    steps *= np.where(random.random((blocks, tokens)) < 0.4, random.uniform(1.5, 10, (blocks, tokens)), 1)
    steps[random.integers(blocks)] *= 3
    return timings(2e-3, steps.tolist())


def test_a_busy_machine_hardly_changes_the_decoding_time_and_shows_in_the_other_columns():
    rows = [figures(disturbed(seed)) for seed in range(30)]
    assert max(row["decode_ms_per_token"] for row in rows) < 1.1
    assert max(row["median_ms_per_token"] for row in rows) > 1.2
    assert min(row["p95_ms_per_token"] for row in rows) > 2


def test_without_disturbance_every_figure_is_the_time_it_takes():
    row = figures(timings(4e-3, [[1e-3, 2e-3, 3e-3]] * 2, batch_size=2))
    assert row["decode_ms_per_token"] == row["median_ms_per_token"] == pytest.approx(2.0)
    assert row["first_token_ms"] == row["median_first_token_ms"] == pytest.approx(4.0)
    assert row["tokens_per_second"] == pytest.approx(2 * 4 / 10e-3)


def test_seconds_per_answer_are_the_mean_of_undisturbed_examples():
    assert seconds_per_answer([[1.0, 9.0], [5.0, 3.0]]) == 2.0
    assert seconds_per_answer([]) is None


def test_a_spread_needs_two():
    assert spread_percent([2.0, 2.5, 2.2]) == pytest.approx(25.0)
    assert spread_percent([2.0]) is None


def test_examples_are_taken_from_the_whole_split():
    assert spread_out(list(range(10)), 4) == [0, 2, 5, 7]  # pyright: ignore[reportArgumentType]
    assert spread_out(list(range(3)), 20) == [0, 1, 2]  # pyright: ignore[reportArgumentType]
    assert spread_out([], 20) == []
