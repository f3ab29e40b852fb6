"""The training loop, for every method and for the teacher: epochs, steps, micro-batches, on `accelerate`.

Batches are of similar length, teacher outputs are looked up by example id, and losses are sums over the positions of
a whole optimizer step divided by their number, so that gradient accumulation and batch order change nothing. A run
fails as soon as a number is not finite, takes a batch in pieces where the memory does not hold it whole, and goes on
from its checkpoints as if it had never been stopped.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from kdsuite.config import TrainingSettings
from kdsuite.errors import RunError
from kdsuite.methods.rollouts import Rollouts
from kdsuite.methods.targets import TeacherTargets
from kdsuite.methods.terms import Distiller
from kdsuite.models.forward import collate_for
from kdsuite.runtime.device import DeviceChoice, bucket, empty_cache, examples_at_once, peak_memory_mb
from kdsuite.runtime.memory import OUT_OF_MEMORY, BatchSize, is_out_of_memory
from kdsuite.runtime.process import seed_everything, stop_requests
from kdsuite.runtime.ranks import here, total, whole
from kdsuite.tasks.batching import LengthGroupedSampler
from kdsuite.tasks.encoding import Encoded
from kdsuite.train.checkpoint import Checkpoints, State, Tensors, Training

MPS_RELEASE_STEPS = 50
SHORT = 128  # tokens
MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
UNDECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")  # as transformers'


@dataclass(frozen=True)
class Material:
    """What is learned and how; `teacher` is what the teacher says about the examples, where anything of it is read.

    `order`: examples whose lengths decide the batches, where they are not those that are learned; the learned ones are
    found among them by id. `beside`: other texts that are learned with some of the examples, by id, in passes of their
    own: rationales.
    """

    examples: Sequence[Encoded]
    pad_id: int
    settings: TrainingSettings
    seed: int
    teacher: TeacherTargets | Rollouts | None = None
    order: Sequence[Encoded] | None = None
    beside: Sequence[Encoded] = ()


def train(
    distiller: Distiller,
    material: Material,
    choice: DeviceChoice,
    evaluate: Callable[[], float] | None = None,
    keep_best: Callable[[], None] = lambda: None,
    advance: Callable[[int, int], None] = lambda step, of: None,
    checkpoints: Checkpoints | None = None,
    say: Callable[[str], None] = lambda line: None,
    log: Callable[[Mapping[str, float]], None] = lambda row: None,
) -> Training:
    """Train a distiller in place, going on from the latest of its `checkpoints` if there is one.

    `evaluate` gives the selection metric at the end of each epoch and `keep_best` is called whenever it is
    the best so far (the first of equals); `log` gets each row of the history, those of before it was stopped included.
    RunError if a loss or a gradient is not finite; a step whose gradient overflows float16 is left out, and its scale
    lowered, down to 1. KeyboardInterrupt at a first Ctrl-C (or SIGTERM), behind the step and its checkpoint.
    """
    saved = checkpoints.latest() if checkpoints else None
    for row in saved["training"]["history"] if saved else ():
        log(row)
    if saved and saved["finished"]:
        return Training(**saved["training"] | {"trained_here": False})
    loop = Loop(distiller, material, choice, say, log)
    state, record = loop.state, loop.state.record
    leads = checkpoints is not None and not here().rank  # who follows is told
    with stop_requests() if leads else nullcontext(lambda: False) as stop_requested:

        def keep() -> None:
            # at an epoch's end also where there is one: the best weights may be newer than it knows
            due = checkpoints is not None and (checkpoints.due or (loop.ends_epoch and bool(checkpoints.there())))
            wanted, stop = here().agreed(lambda: (due or stop_requested(), stop_requested()))
            if wanted and checkpoints:
                loop.clock()
                record.peak_memory_mb = max(record.peak_memory_mb, peak_memory_mb(choice.device))
                checkpoints.write(state, finished=record.steps == loop.total)
                if stop:
                    if record.steps < loop.total:
                        say(f"stopped after step {record.steps} of {loop.total}")
                    raise KeyboardInterrupt

        if saved:
            state.restore(saved)
            say(f"going on at step {record.steps} of {loop.total}")
        while record.steps < loop.total:
            for batch in loop.epoch():
                loop.step(batch)
                advance(record.steps, loop.total)
                if record.steps % material.settings.logging_steps == 0:
                    loop.log()
                if not loop.ends_epoch:
                    keep()
            loop.clock()
            if evaluate is not None and loop.evaluate(evaluate):
                keep_best()
            loop.clock(counts=False)
            if record.steps > state.logged:  # the last steps of an epoch are checked and recorded, too
                loop.log()
            keep()
    return record


class Loop:
    """What a training is made of; `state` is the part of it that changes, `total` are its steps."""

    def __init__(
        self,
        distiller: Distiller,
        material: Material,
        choice: DeviceChoice,
        say: Callable[[str], None],
        log: Callable[[Mapping[str, float]], None] = lambda row: None,
    ):
        self._distiller, self._material, self._choice, self._device = distiller, material, choice, choice.device
        self._say, self._log = say, log
        settings = material.settings
        self._micro = settings.micro_batch_size or settings.batch_size
        self._order = material.order or material.examples
        self._learned = {e.id: e for e in material.examples}
        self._beside = {e.id: e for e in material.beside}
        some = [i for i, e in enumerate(self._order) if e.id in self._learned]
        self._sampler = LengthGroupedSampler([len(e) for e in self._order], settings.batch_size, material.seed, some)
        self._steps_per_epoch = len(self._sampler)
        self.total = math.ceil(settings.epochs * self._steps_per_epoch)
        seed_everything(material.seed)
        AcceleratorState._reset_state(True)  # else a process could train in one precision only
        self._accelerator = Accelerator(
            device_placement=False, mixed_precision=MIXED[choice.dtype_name], cpu=choice.device.type == "cpu"
        )
        decayed = set(get_parameter_names(distiller, [nn.LayerNorm], list(UNDECAYED)))
        trained = [(name, p) for name, p in distiller.named_parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in trained if name in decayed], "weight_decay": settings.weight_decay},
            {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        self._model, optimizer = self._accelerator.prepare(distiller, adamw)
        warmup = math.ceil(self.total * settings.warmup_ratio)
        scheduler = get_linear_schedule_with_warmup(optimizer, warmup, self.total)
        self.state = State(distiller, optimizer, scheduler, self._accelerator.scaler)
        self._writing = BatchSize(settings.batch_size)  # answers of the student at once
        self._norm: Any = 0.0  # of the last step, a tensor; None where it overflowed
        self._rate = 0.0
        self._since = time.perf_counter()

    @property
    def ends_epoch(self) -> bool:
        steps = self.state.record.steps
        return steps % self._steps_per_epoch == 0 or steps == self.total

    @property
    def _epochs(self) -> float:
        """Passes so far, counted in micro-batches."""
        whole, steps = divmod(self.state.record.steps, self._steps_per_epoch)
        of = -(-len(self._order) // self._micro)
        return whole + steps * (self._material.settings.batch_size // self._micro) / of

    def epoch(self) -> Iterator[list[Encoded]]:
        """The batches of the present epoch that are still to come."""
        epoch, begun = divmod(self.state.record.steps, self._steps_per_epoch)
        if not begun:
            torch.empty((), dtype=torch.int64).random_()  # as a DataLoader does: dropout depends on it
        self._distiller.train()
        self._sampler.set_epoch(epoch)
        for batch in islice(self._sampler, begun, self.total - epoch * self._steps_per_epoch):
            yield [self._learned[self._order[i].id] for i in batch]

    def step(self, examples: list[Encoded]) -> None:
        """One optimizer step; where memory runs out, from its beginning in smaller pieces."""
        state, record = self.state, self.state.record
        teacher, seed, ranks = self._material.teacher, self._material.seed, here()
        if ranks.size > 1:  # what each drops out is its own, and the same when a step is done again
            torch.manual_seed(random.Random(f"{seed} {record.steps} {ranks.rank}").getrandbits(63))
        if isinstance(teacher, Rollouts):
            about = self._distiller.student, examples, seed, record.steps
            with self._accelerator.autocast():
                examples = self._writing.fit(partial(teacher.learned, *about), self._device, self._say)
        while True:
            try:
                counts, state.sums = self._backward(examples)
                break
            except OUT_OF_MEMORY as error:
                if not is_out_of_memory(error) or ranks.size > 1:  # the others do not know
                    raise
            state.optimizer.zero_grad()  # a backward pass that was broken off leaves half a gradient
            size = record.micro_batch_size or min(self._micro, len(examples))
            if size == 1:
                raise RunError("out of memory with a single example; set gradient_checkpointing, or lower max_length")
            record.micro_batch_size = -(-size // 2)
            empty_cache(self._device)
            self._say(f"out of memory; going on with {record.micro_batch_size} examples at a time, the same per step")
        record.supervised_tokens += counts["tokens"]
        record.examples += len(examples)
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), self._material.settings.max_grad_norm)
        self._norm = norm if norm is None else whole(norm)
        self._rate = state.scheduler.get_last_lr()[0]
        scale = state.scaler.get_scale() if state.scaler else 1.0
        state.optimizer.step()
        if state.scaler and state.scaler.get_scale() < scale:  # float16's gradients overflowed: nothing was learned
            self._norm = self._norm if scale <= 1.0 else None  # at a lower scale they may not
        else:
            state.scheduler.step()
        state.optimizer.zero_grad()
        record.steps += 1
        if self._device.type == "mps" and record.steps % MPS_RELEASE_STEPS == 0:
            gc.collect()
            empty_cache(self._device)
            getattr(torch.mps, "clear_graph_cache", lambda: None)()

    def _backward(self, examples: list[Encoded]) -> tuple[dict[str, int], Tensors]:
        """The gradient of one step's loss; how many values each part has, and the sums for the next row."""
        multiple, student = bucket(self._device), self._distiller.student
        more = [self._beside[e.id] for e in examples if e.id in self._beside]
        inputs: list[tuple[Any, Any, bool, bool]] = []
        for some, beside in ((examples, False), (more, True)):
            teacher = None if beside else self._material.teacher
            for piece, again in _own(list(self._pieces(some))):
                batch = collate_for(student, piece, self._material.pad_id, multiple)
                inputs.append((batch, teacher.of(piece) if teacher else None, beside, again))
        every = [self._distiller.counts(batch, soft, beside) for batch, soft, beside, again in inputs if not again]
        own = {part: sum(some[part] for some in every) for part in ("tokens", *self._distiller.weights)}
        counts = {part: int(count) for part, count in total(own, self._device).items()}
        if not counts["tokens"]:
            raise RunError("a batch has no supervised token; nothing can be learned from it")
        values: Tensors = {}
        for batch, soft, beside, again in inputs:
            with attention(self._choice, batch.input_ids.shape[1]):  # checkpointing runs it again going back
                totals = self._model(batch.to(self._device), soft and soft.to(self._device), beside)
                means = {part: value / max(counts[part], 1) for part, value in totals.items()}
                weighted = [weight * means[part] for part, weight in self._distiller.weights.items() if part in means]
                loss = torch.stack(weighted).sum()
                self._accelerator.backward(0 * loss if again else loss)
            for name, value in {"loss": loss, **{f"loss_{part}": mean for part, mean in means.items()}}.items():
                value = torch.zeros_like(value) if again else value.detach()
                values[name] = values[name] + value if name in values else value
        values = total(values, self._device)
        for part in self._distiller.weights:
            term: Any = self._distiller.terms[part]
            mean = values.get(f"loss_{part}", torch.zeros((), device=self._device))
            term.stepped(mean, (self.state.record.steps + 1) / self.total)
        sums = self.state.sums
        return counts, sums | {name: sums[name] + value if name in sums else value for name, value in values.items()}

    def _pieces(self, examples: list[Encoded]) -> Iterator[list[Encoded]]:
        """As many at a time as are wanted, as memory and device bear, and so that each process has some."""
        most = max(1, min(self._micro, -(-len(examples) // here().size)))
        for begin in range(0, len(examples), most):
            micro = examples[begin : begin + most]
            size = examples_at_once(self._device, len(micro), max(len(e) for e in micro))
            size = min(size, self.state.record.micro_batch_size or size)
            yield from (micro[at : at + size] for at in range(0, len(micro), size))

    def log(self) -> None:
        """A row of the history: means over the steps since the last one, and the last one's norm of the gradient unless
        that step was left out. RunError if one is not finite."""
        state, step = self.state, self.state.record.steps
        means = {name: float(total) / (step - state.logged) for name, total in state.sums.items()}
        norm = {} if self._norm is None else {"grad_norm": float(self._norm)}
        row = {"loss": means["loss"], **norm, "learning_rate": self._rate} | means
        state.sums, state.logged = {}, step
        bad = [name for name, value in row.items() if not math.isfinite(value)]
        if bad:
            raise RunError(f"{', '.join(bad)} not finite at step {step}; lower the learning rate, or use dtype float32")
        self._add({"epoch": self._epochs, **row})

    def evaluate(self, metric_of: Callable[[], float]) -> bool:
        """The selection metric goes into the history; whether it is better than after all epochs before."""
        self._distiller.eval()
        record, metric = self.state.record, here().agreed(metric_of)
        self.clock(counts=False)
        self._add({"epoch": round(self._epochs, 4), "dev_metric": metric})
        best = metric > max(record.dev, default=-math.inf)
        record.dev.append(metric)
        record.best_epoch = len(record.dev) if best else record.best_epoch
        return best

    def _add(self, row: dict[str, Any]) -> None:
        record = self.state.record
        self.clock()
        record.history.append({"step": record.steps, **row, "seconds": round(record.seconds, 3)})
        self._log(record.history[-1])

    def clock(self, counts: bool = True) -> None:
        """Add the time since the last call to the seconds of training, or leave it out of them."""
        now = time.perf_counter()
        self.state.record.seconds += (now - self._since) * counts
        self._since = now


def _own(pieces: list[list[Encoded]]) -> Iterator[tuple[list[Encoded], bool]]:
    """Those of this process, every n-th, one in each round that they all take part in; and whether it is only the
    first once more, which must not count: there are fewer left than processes."""
    ranks = here()
    for begin in range(0, len(pieces), ranks.size):
        at = begin + ranks.rank
        yield (pieces[at], False) if at < len(pieces) else (pieces[0], True)


def attention(choice: DeviceChoice, length: int) -> AbstractContextManager[Any]:
    """How attention is computed over rows of so many tokens.

    In 16 bits, going back through flash attention costs a CPU four times as much as through the plain products at 55
    tokens, and as much at some 200; plain ones keep the scores, [rows, heads, length, length].
    """
    short = choice.device.type == "cpu" and choice.dtype != torch.float32 and length <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()
