"""How fast this device is: a layer of a model's own shape and dtype, random weights, is timed on the plan's batches.

The layer (`layer`) has adapters where runs have them, and the precision of the runs; the LM head has the
whole vocabulary, AdamW's time goes by the number of weights. A model is taken to be its layers one after the other, and
the head. Generation has a timing of its own, over so many layers that no cache of a CPU holds them: there, what counts
is how fast weights are read. A batch is tried from a few tokens on and doubled until it is whole or takes
`LONG_ENOUGH`; what is left out is taken to run at the same speed. All of it takes some seconds, up
to a minute for a model of billions of parameters, or where students are measured in fewer bits, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from kdsuite.config import LoraSettings
from kdsuite.config.benchmark import Scheme
from kdsuite.forecast.footprint import adapter_parameters
from kdsuite.forecast.layer import Layers
from kdsuite.forecast.scene import UnknownShape
from kdsuite.forecast.speeds import Load
from kdsuite.forecast.times import forward_operations, training_operations
from kdsuite.models.costs import Shape
from kdsuite.runtime.device import DeviceChoice, memory_bytes, now

LONG_ENOUGH = 0.1  # seconds of a pass
GROWN = 1.7  # by twice the tokens: else it is the weights that take the time
FEWEST, MOST_TOKENS = 16, 256
FEW = 4.0  # positions that meet the head: up to dozens, reading its weights is what takes the time
FEWEST_TIMES, REPETITIONS = 2, 3  # the fastest counts: what else the machine does only slows down
BUDGET = 0.03  # seconds, after which nothing is repeated any more
STREAMED = 256e6  # bytes of weights that a decoding step goes through, if the model has as many
HEAD_BYTES = 1e9  # at most; of a larger head, that part is timed
OPTIMIZED = 2**21  # weights, at most, whose AdamW step is timed
PEAK_WIDTHS = (1024, 2048, 4096, 8192)  # of square matrices, up to the first whose product takes long enough
ROOM = 4  # times a layer's weights that have to be free: they, gradients, activations

GIGA = 1e9

Work = Callable[[torch.Tensor], object]


class Measured:
    """The speeds of a device; each is measured when it is first asked for."""

    def __init__(self, choice: DeviceChoice) -> None:
        self._choice = choice
        self._layers: Callable[..., Any] = cache(self._build)
        self._head = cache(self._build_head)
        train, read, write = cache(self._training), cache(self._reading), cache(self._writing)
        self.training = lambda shape, load: train(shape, alike(load))
        self.reading = lambda shape, load: read(shape, alike(load))
        self.writing = lambda shape, load: write(shape, alike(load, writes=True))
        self._multiplying, self._per_weight = cache(self._multiply), cache(self._adamw)

    def _training(self, shape: Shape, load: Load) -> float:
        model, lora = self._layers(shape, load.lora, 1).train(), load.lora
        assert lora is not None

        def layer(states: torch.Tensor) -> None:
            with self._choice.precision():
                out = model(states.requires_grad_())
            out.float().sum().backward()
            for tensor in (states, *model.parameters()):
                tensor.grad = None

        seconds = shape.layers * self._seconds(layer, shape, load) + self._head_seconds(shape, load, trained=True)
        trained = adapter_parameters(shape, lora.r) if lora.enabled else shape.parameters
        seconds += load.steps * trained * self._per_weight()
        return training_operations(shape, *_sums(load), lora.enabled, recomputed=False) / seconds

    def _reading(self, shape: Shape, load: Load) -> float:
        model = self._layers(shape, load.lora, 1, load.quantization).eval()

        @torch.inference_mode()
        def layer(states: torch.Tensor) -> None:
            with self._choice.precision():
                model(states)

        seconds = shape.layers * self._seconds(layer, shape, load) + self._head_seconds(shape, load, trained=False)
        return forward_operations(shape, *_sums(load)) / seconds

    def _writing(self, shape: Shape, load: Load) -> float:
        dtype = self._dtype(load)
        each = shape.body_parameters // shape.layers * dtype.itemsize
        count = min(shape.layers, max(1, round(STREAMED / each)))
        model = self._layers(shape, load.lora, count, load.quantization).eval()
        room = load.sequences, shape.kv_heads, load.tokens, shape.head_width
        there = torch.ones(room, device=self._choice.device, dtype=self._choice.dtype)

        @torch.inference_mode()
        def step(states: torch.Tensor) -> None:
            with self._choice.precision():
                model(states, there)

        one = replace(load, tokens=1, positions=1.0)
        seconds = shape.layers / count * self._seconds(step, shape, one, whole=True)
        return seconds + self._head_seconds(shape, one, trained=False)

    def split(self, shape: Shape) -> int:
        return 1

    def peak(self) -> float:
        return self._multiplying(self._choice.dtype)

    def about(self) -> str:
        own, single = self._choice.dtype, torch.float32
        speeds = f"{self.peak() / GIGA:,.0f} GFLOP/s in {self._choice.dtype_name}"
        if own != single:
            speeds += f" ({self._multiplying(single) / GIGA:,.0f} in float32)"
        return f"timed just now, a layer of each model as wide as it is, its head; large matrices (the peak): {speeds}"

    def _gained(self) -> float:
        """How many times as fast several threads are as one.

        What is timed is timed on one, because on a busy machine threads that wait for each other take many times as
        long for small work, and a plan would take minutes.
        """
        if self._choice.device.type != "cpu" or self._choice.threads == 1:
            return 1.0
        return max(1.0, self.peak() / self._multiplying(self._choice.dtype, 1))

    def _multiply(self, dtype: torch.dtype, threads: int | None = None) -> float:
        """Operations per second of the fastest product of two large square matrices."""
        rates = []
        for width in PEAK_WIDTHS:
            square = torch.ones(width, width, device=self._choice.device, dtype=dtype)
            _ = square[:64] @ square  # kernels are chosen
            seconds = self._fastest(lambda a: a @ a, square, threads or self._choice.threads)
            rates.append(2 * width**3 / seconds)
            if seconds >= LONG_ENOUGH:
                break
        return max(rates)

    def _head_seconds(self, shape: Shape, load: Load, trained: bool) -> float:
        """Of the logits of a load's positions, with their log-softmax, and on the way back."""
        count = round(load.sequences * load.positions)
        if not count:
            return 0.0
        weight = self._head(shape, self._dtype(load))
        whole = load.lora is not None and not load.lora.enabled

        def head(states: torch.Tensor) -> None:
            with torch.inference_mode(not trained):
                weight.requires_grad_(trained and whole)
                with self._choice.precision():
                    scores = F.linear(states.requires_grad_(trained), weight)
                chosen = scores.float().log_softmax(-1)[..., 0].sum()
                if trained:
                    chosen.backward()
                    weight.grad = states.grad = None

        positions = replace(load, sequences=count, tokens=1)
        return shape.vocabulary / len(weight) * self._seconds(head, shape, positions)

    def _adamw(self) -> float:
        """Seconds of a step per weight."""
        weights = torch.zeros(OPTIMIZED, device=self._choice.device, requires_grad=True)
        weights.grad = torch.ones_like(weights)
        optimizer = torch.optim.AdamW([weights], fused=True)

        def step(weights: torch.Tensor) -> None:
            torch.nn.utils.clip_grad_norm_([weights], 1.0)
            optimizer.step()

        step(weights)  # which makes the moments
        return self._fastest(step, weights) / OPTIMIZED

    def _dtype(self, load: Load) -> torch.dtype:
        """Of the weights: what is trained is float32, the frozen base of adapters is not."""
        return self._choice.dtype if load.lora is None or load.lora.enabled else torch.float32

    def _build(self, shape: Shape, lora: LoraSettings | None, count: int, scheme: Scheme | None = None) -> Any:
        """Layers of a model, `lora` saying how it is trained, if it is, `scheme` how it is quantized.

        UnknownShape where memory is short of them. What cannot be quantized here is taken as it is: the benchmark
        leaves it out.
        """
        dtype = self._dtype(Load(1, 1, 1, lora))
        needed = ROOM * count * shape.body_parameters / shape.layers * dtype.itemsize
        if needed > memory_bytes(self._choice.device)[1]:
            raise UnknownShape(f"layers of {shape.width} are more than what is free")
        model = Layers(shape, lora, count, dtype, self._choice.device)
        for tensor in model.parameters():
            _fill(tensor)
        if scheme:
            try:
                model.quantize(scheme, self._choice.device)
            except (ImportError, RuntimeError, ValueError, AssertionError):
                return self._build(shape, lora, count)
        return model

    def _build_head(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        rows = min(shape.vocabulary, round(HEAD_BYTES / dtype.itemsize / shape.width))
        return _fill(torch.empty(rows, shape.width, device=self._choice.device, dtype=dtype))

    def _seconds(self, work: Work, shape: Shape, load: Load, whole: bool = False) -> float:
        """Of a pass of a load's tokens; of more and more of them, unless its batch is to be taken as it is."""
        rows, length = load.sequences, load.tokens
        if not whole:
            length = min(load.tokens, FEWEST)
            rows = min(load.sequences, FEWEST // length)
        seconds = math.inf
        while True:
            states, before = self._states(rows, length, shape, load), seconds
            work(states)  # kernels are chosen for every size anew, caches filled: three times as long
            seconds = self._fastest(work, states)
            share = rows * length / (load.sequences * load.tokens)
            if share == 1 or (seconds >= LONG_ENOUGH and seconds >= GROWN * before):
                return seconds / share / self._gained()
            rows = min(2 * rows, load.sequences) if length == load.tokens else rows
            length = min(2 * length, load.tokens)

    def _states(self, rows: int, length: int, shape: Shape, load: Load) -> torch.Tensor:
        return torch.randn(rows, length, shape.width, device=self._choice.device, dtype=self._dtype(load))

    def _fastest(self, work: Work, given: torch.Tensor, threads: int = 1) -> float:
        """Seconds of the quickest of some calls."""
        times: list[float] = []
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        while len(times) < FEWEST_TIMES or (len(times) < REPETITIONS and sum(times) < BUDGET):
            started = now(given.device)
            work(given)
            times.append(now(given.device) - started)
        torch.set_num_threads(before)
        return min(times)


def alike(load: Load, writes: bool = False) -> Load:
    """The load that stands for all of about its size: few have to be timed, and speeds hardly differ."""

    def power(value: float) -> int:
        return 4 ** max(0, round(math.log(value, 4)))

    if writes:
        return replace(load, sequences=power(load.sequences), tokens=MOST_TOKENS)
    tokens = min(MOST_TOKENS, power(load.sequences * load.tokens))
    return replace(load, sequences=1, tokens=tokens, positions=min(load.positions, 1.0) and FEW)


def _sums(load: Load) -> tuple[float, float]:
    """Tokens, and positions that meet the head."""
    return load.sequences * load.tokens, load.sequences * load.positions


def _fill(tensor: torch.Tensor) -> torch.Tensor:
    """With small random numbers, drawn once and repeated: drawing so many would take longer than what is timed."""
    drawn = 0.02 * torch.randn(min(tensor.numel(), 2**16), device=tensor.device, dtype=tensor.dtype)
    flat, filled = tensor.data.view(-1), len(drawn)
    flat[:filled] = drawn
    while filled < len(flat):  # twice as much each time: many small copies take long where threads wait for each other
        flat[filled : 2 * filled] = flat[: len(flat) - filled][:filled]
        filled *= 2
    return tensor
