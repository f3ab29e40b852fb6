"""The calibration times real steps: of the model's width where that is quick, of less where it is not."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from kdsuite.forecast import calibration
from kdsuite.forecast.calibration import Layer, calibrate
from kdsuite.models.costs import shape_of
from kdsuite.runtime.device import choose


def test_speeds_are_finite_and_positive_and_a_small_model_is_measured_at_its_own_width() -> None:
    shape = shape_of("offline-student")
    assert shape is not None
    rates = calibrate(shape, 4, 32, choose("cpu", "float32", 1))
    assert rates.width == shape.width
    assert rates.tokens == 4 * 32
    assert all(math.isfinite(r) and r > 0 for r in (rates.training, rates.forward, rates.token))


def test_a_large_model_is_measured_narrower_than_it_is(monkeypatch) -> None:
    monkeypatch.setattr(calibration, "LONG_ENOUGH", 0.0)
    shape = shape_of("meta-llama/Llama-3.1-8B-Instruct")
    assert shape is not None
    assert calibrate(shape, 2, 16, choose("cpu", "float32", 1)).width == calibration.NARROWEST


def test_heads_that_do_not_divide_a_narrower_width_are_no_obstacle(monkeypatch) -> None:
    monkeypatch.setattr(calibration, "NARROWEST", 48)
    shape = shape_of("offline-teacher")
    assert shape is not None
    assert calibrate(replace(shape, heads=7, head_width=18), 2, 16, choose("cpu", "float32", 1)).forward > 0


def test_the_layer_is_causal() -> None:
    torch.manual_seed(0)
    layer, x = Layer(32, 64, 2, 16), torch.randn(1, 6, 32)
    other = x.clone()
    other[:, 4:] += 1
    torch.testing.assert_close(layer(x)[:, :4], layer(other)[:, :4])
    assert not torch.allclose(layer(x)[:, 4:], layer(other)[:, 4:])
