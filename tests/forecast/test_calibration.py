"""The calibration times a layer as wide as the model's own, under the load of the runs."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from kdsuite.config import LoraSettings
from kdsuite.forecast import calibration, layer
from kdsuite.forecast.build import this_machine
from kdsuite.forecast.calibration import Measured
from kdsuite.forecast.scene import UnknownShape
from kdsuite.forecast.speeds import Load
from kdsuite.forecast.times import forward_operations
from kdsuite.models.costs import Shape
from kdsuite.runtime.device import choose

SHAPE = Shape(300, 48, 144, 3, 6, 2, 8, False, False, False, 2, "float32")
ADAPTERS, WHOLE = LoraSettings(r=4), LoraSettings(enabled=False)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured(choose("cpu", "float32", 1))


class Counted(Measured):
    """A clock by which everything takes as long as it has numbers to work on; what it was asked is kept."""

    def __init__(self) -> None:
        super().__init__(choose("cpu", "float32", 1))
        self.seen: list[tuple[int, ...]] = []

    def _fastest(self, work, given: torch.Tensor, threads: int = 1) -> float:
        self.seen.append(tuple(given.shape))
        work(given)
        return given.numel() * 1e-6


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setattr(calibration, "PEAK_WIDTHS", (32, 64))
    monkeypatch.setattr(calibration, "OPTIMIZED", 100)
    return Counted()


def test_speeds_are_finite_and_positive_with_adapters_without_and_of_a_model_that_is_only_read(measured) -> None:
    for lora in (ADAPTERS, WHOLE, None):
        load = Load(2, 12, 2.5, lora, 0.5)
        speeds = [measured.reading(SHAPE, load), measured.writing(SHAPE, load)]
        speeds += [measured.training(SHAPE, load)] if lora else []
        assert all(math.isfinite(speed) and speed > 0 for speed in speeds)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantized_layer_is_timed_as_the_libraries_quantize_it(scheme: str, dtype: str) -> None:
    shape = replace(SHAPE, width=64, inner=192, head_width=32)
    speeds = Measured(choose("cpu", dtype, 1))
    packed, plain = (speeds._layers(shape, None, 1, some) for some in (scheme, None))
    states = torch.randn(2, 12, shape.width, dtype=speeds._choice.dtype)
    with torch.inference_mode():
        ours, theirs = packed(states).float(), plain(states).float()
    kinds = {type(each.base.weight).__name__ for each in packed.modules() if isinstance(each, layer.Map)}
    assert kinds == {"int8": {"Int8Tensor"}, "int4": {"Params4bit"}}[scheme]
    assert 0 < (ours - theirs).norm() < 0.2 * theirs.norm()
    load = Load(1, 16, 0.0, quantization=scheme)
    assert speeds.reading(shape, load) > 0 and speeds.writing(shape, load) > 0


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_every_quantized_layer_has_weights_of_its_own(scheme: str) -> None:
    """A step of decoding reads all of them; of one that stood for three, a cache of the CPU would hold a third."""
    shape = replace(SHAPE, width=64, inner=192, head_width=32)
    model = Measured(choose("cpu", "float32", 1))._build(shape, None, 3, scheme)
    weights = [each.gate.base.weight for each in model.layers]
    assert {type(weight).__name__ for weight in weights} == {{"int8": "Int8Tensor", "int4": "Params4bit"}[scheme]}
    assert len({getattr(weight, "qdata", weight).data_ptr() for weight in weights}) == 3


def test_what_cannot_be_quantized_here_is_timed_as_it_is(measured: Measured) -> None:
    """Some kernels for 4 bits want rows in groups of 32; these have 16."""
    assert measured.reading(SHAPE, Load(1, 16, 0.0, quantization="int4")) > 0


def test_a_library_that_is_missing_changes_nothing_but_the_quantization(measured: Measured, monkeypatch) -> None:
    for name in ("torchao.quantization", "bitsandbytes.nn.modules"):
        monkeypatch.setitem(sys.modules, name, None)
    for scheme in ("int8", "int4"):
        assert measured.writing(SHAPE, Load(4, 16, 0.0, quantization=scheme)) > 0


def test_what_is_timed_has_the_width_of_the_model_and_the_batch_of_the_runs(counted: Counted) -> None:
    counted.reading(SHAPE, Load(4, 40, 2.0))
    assert {shape[-1] for shape in counted.seen} == {SHAPE.width}
    assert counted.seen[0] == (1, 16, SHAPE.width)
    assert (1, 256, SHAPE.width) in counted.seen  # 4 × 40 tokens, as all of about so many
    assert (4, 1, SHAPE.width) in counted.seen  # the head
    layers = counted._layers(SHAPE, None, 1).layers
    assert [layer.gate.base.weight.shape for layer in layers] == [(SHAPE.inner, SHAPE.width)]
    assert counted._head(SHAPE, torch.float32).shape == (SHAPE.vocabulary, SHAPE.width)


def test_a_batch_that_takes_long_is_tried_in_part_and_counted_in_proportion(counted: Counted, monkeypatch) -> None:
    whole = counted.reading(SHAPE, Load(4, 40, 0.0))
    tried = len(counted.seen)
    monkeypatch.setattr(calibration, "LONG_ENOUGH", 0.0)
    part = Counted()
    assert part.reading(SHAPE, Load(4, 40, 0.0)) == pytest.approx(whole)
    assert len(part.seen) == 2 < tried


def test_every_size_is_run_once_before_it_is_timed(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen for each size anew."""
    ran: list[tuple[str, int]] = []

    def timed(self: Measured, work, given: torch.Tensor, threads: int = 1) -> float:
        ran.append(("timed", given.shape[1]))
        return 1.0

    monkeypatch.setattr(Measured, "_fastest", timed)
    Measured(counted._choice)._seconds(lambda states: ran.append(("run", states.shape[1])), SHAPE, Load(1, 64, 0.0))
    assert ran == [(what, length) for length in (16, 32, 64) for what in ("run", "timed")]


def test_what_takes_as_long_for_twice_the_tokens_is_tried_on(counted: Counted, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "LONG_ENOUGH", 0.0)
    monkeypatch.setattr(calibration.Measured, "_fastest", lambda self, work, given, threads=1: 1.0)
    rate = Measured(choose("cpu", "float32", 1)).reading(SHAPE, Load(8, 32, 0.0))
    assert rate == pytest.approx(forward_operations(SHAPE, 256) / SHAPE.layers)


def test_more_layers_take_as_much_longer_as_there_are_more_of_them(counted: Counted, monkeypatch) -> None:
    load, deeper = Load(1, 64, 0.0), replace(SHAPE, layers=6)
    seconds = [2 * shape.body_parameters * 64 / counted.reading(shape, load) for shape in (SHAPE, deeper)]
    assert seconds[1] == pytest.approx(2 * seconds[0])
    monkeypatch.setattr(calibration, "STREAMED", 1.0)  # one layer is timed
    load, head = Load(4, 64, 1.0), Load(4, 1, 1.0)
    layers = [counted.writing(s, load) - counted._head_seconds(s, head, trained=False) for s in (SHAPE, deeper)]
    assert layers[1] == pytest.approx(2 * layers[0])


def test_loads_of_about_a_size_are_timed_once(counted: Counted) -> None:
    counted.reading(SHAPE, Load(4, 60, 2.0))
    tried = len(counted.seen)
    counted.reading(SHAPE, Load(16, 20, 5.0))
    assert len(counted.seen) == tried
    counted.reading(SHAPE, Load(1, 20, 5.0))
    assert len(counted.seen) > tried


def test_the_layer_that_is_timed_computes_what_transformers_does_up_to_its_angles(monkeypatch) -> None:
    monkeypatch.setattr(layer, "_turned", lambda heads: heads)
    sizes = {"hidden_size": 48, "intermediate_size": 144, "num_attention_heads": 6, "num_key_value_heads": 2}
    real = LlamaDecoderLayer(LlamaConfig(**sizes, num_hidden_layers=1, attn_implementation="sdpa"), 0).eval()
    ours = layer.Layer(SHAPE, None)
    theirs = real.self_attn
    maps = [theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj, real.mlp.gate_proj, real.mlp.up_proj]
    for own, other in zip(
        [*ours.attended, ours.out, ours.gate, ours.up, ours.down], [*maps, real.mlp.down_proj], strict=True
    ):
        own.base.weight.data = other.weight.data
    states, ones, zeros = torch.randn(2, 9, 48), torch.ones(2, 9, 8), torch.zeros(2, 9, 8)
    expected = real(states, position_embeddings=(ones, zeros))
    torch.testing.assert_close(ours(states), expected, rtol=1e-4, atol=1e-5)


def test_seldom_updates_cost_less_and_adapters_less_than_all_weights(counted: Counted) -> None:
    often, seldom = (counted.training(SHAPE, Load(2, 16, 1.0, WHOLE, steps)) for steps in (1.0, 0.25))
    assert seldom > often
    assert counted._layers(SHAPE, ADAPTERS, 1).layers[0].gate.down is not None


def test_what_is_trained_is_float32_and_a_frozen_base_is_not() -> None:
    half = Measured(choose("cpu", "bfloat16", 1))
    dtypes = [half._layers(SHAPE, lora, 1).layers[0].norms[0].weight.dtype for lora in (ADAPTERS, None, WHOLE)]
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_generation_is_timed_over_more_weights_than_a_cache_holds(counted: Counted, monkeypatch) -> None:
    each = SHAPE.body_parameters // SHAPE.layers * 4
    monkeypatch.setattr(calibration, "STREAMED", 2 * each)
    counted.writing(SHAPE, Load(4, 10, 1.0))
    assert (4, 1, SHAPE.width) in counted.seen
    assert counted._layers.cache_info().currsize == 1 and len(counted._layers(SHAPE, None, 2).layers) == 2


def test_a_layer_that_memory_does_not_hold_has_no_figure(measured, monkeypatch) -> None:
    monkeypatch.setattr(calibration, "memory_bytes", lambda device: (1000, 1000))
    with pytest.raises(UnknownShape):
        measured.reading(replace(SHAPE, layers=2), Load(1, 4, 1.0, ADAPTERS))


def test_no_model_is_faster_than_large_matrices(measured) -> None:
    wide = replace(SHAPE, width=256, inner=704, head_width=64, heads=4, kv_heads=4)
    assert 0 < measured.reading(wide, Load(4, 64, 1.0)) < 1.2 * measured.peak()


def test_what_the_figures_are_from_names_the_peak_in_both_dtypes_where_they_differ(counted: Counted) -> None:
    assert "GFLOP/s in float32" in counted.about() and "(" not in counted.about().split("peak):")[1]
    half = this_machine(choose("cpu", "bfloat16", 1)).speeds
    assert " in bfloat16 (" in half.about() and half.about().endswith(" in float32)")
