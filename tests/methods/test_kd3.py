"""Layers are matched by relative depth, last to last, through a projector that is always there."""

from __future__ import annotations

import pytest
import torch

from kdsuite.errors import SettingsError
from kdsuite.methods.kd3 import layer_pairs
from kdsuite.methods.targets import SoftTargets
from kdsuite.methods.terms import Features, Seen


@pytest.mark.parametrize(
    ("depths", "mapping", "most", "pairs"),
    [
        ((22, 36), "proportional", 4, [(6, 10), (11, 18), (16, 26), (22, 36)]),  # TinyLlama ← Qwen2.5-3B
        ((2, 2), "proportional", 4, [(1, 1), (2, 2)]),
        ((4, 2), "proportional", 4, [(1, 1), (2, 1), (3, 2), (4, 2)]),
        ((2, 3), "last", 4, [(2, 3)]),
        ((12, 12), "proportional", 1, [(12, 12)]),
        ((22, 36), ((22, 30), (2, 4)), 1, [(2, 4), (22, 30)]),  # explicit pairs, in the student's order
    ],
)
def test_pairs_by_hand(depths, mapping, most, pairs) -> None:
    assert layer_pairs(*depths, mapping, most) == pairs


@pytest.mark.parametrize("student", range(1, 33))
@pytest.mark.parametrize("teacher", [1, 2, 7, 32, 80])
def test_pairs_are_within_both_models_in_order_and_end_at_the_last(student: int, teacher: int) -> None:
    pairs = layer_pairs(student, teacher, "proportional", 4)
    assert pairs[-1] == (student, teacher)
    assert pairs == sorted(pairs)
    assert len({own for own, _ in pairs}) == len(pairs) == min(4, student)
    assert all(1 <= own <= student and 1 <= other <= teacher for own, other in pairs)


@pytest.mark.parametrize("pair", [(3, 1), (1, 4), (0, 1)])
def test_a_pair_beyond_a_models_depth_is_named(pair) -> None:
    with pytest.raises(SettingsError, match=r"kd3.layers: no pair .*the student has 2 layers, the teacher 3"):
        layer_pairs(2, 3, [pair], 4)


def test_the_projector_is_there_for_equal_widths_too_and_computes_in_float32() -> None:
    term = Features(1.0, "mse", [(1, 2), (3, 4)], [(8, 8), (8, 8)])
    assert [p.shape for p in term.parameters()] == [(8, 8), (8, 8)]
    states = {layer: torch.randn(5, 8, dtype=torch.bfloat16) for layer in (1, 3)}
    seen = Seen(torch.empty(5, 1), torch.empty(5), torch.arange(5), hidden=states)
    soft = SoftTargets(torch.arange(5), hidden=[state.float() for state in states.values()])
    distance = term(seen, soft)
    assert distance.dtype == torch.float32 and distance.shape == (5,)
    assert (distance > 0.1).all()  # the student's states are the teacher's: only the projection is between them
