"""The training loop: the transformers `Trainer`, subclassed once, for every method and for the teacher.

What is added: batches of similar length, teacher outputs looked up by example id, losses as sums over the
positions of a whole optimizer step divided by their number (so that gradient accumulation and batch order
change nothing), the parts of the loss in the history, a run that fails as soon as a number is not finite, pieces
of a batch where the memory does not hold it whole, and checkpoints without pickle that a later invocation goes
on from.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from kdsuite.config import TrainingSettings
from kdsuite.errors import RunError
from kdsuite.methods.targets import TeacherTargets
from kdsuite.methods.terms import Distiller
from kdsuite.models.forward import collate_for
from kdsuite.runtime.device import DeviceChoice, bucket, empty_cache, examples_at_once
from kdsuite.runtime.memory import OUT_OF_MEMORY, is_out_of_memory
from kdsuite.runtime.process import stop_requests
from kdsuite.store.files import atomic_write_text
from kdsuite.tasks.batching import LengthGroupedSampler
from kdsuite.tasks.encoding import Encoded
from kdsuite.train.checkpoint import (
    Checkpoints,
    Stand,
    capture,
    restore_counters,
    restore_optimizer,
    restore_random,
    restore_scaler,
    restore_weights,
)

HISTORY: tuple[str, ...] = (
    "step", "epoch", "loss", "loss_ce", "loss_kd", "loss_feature", "learning_rate", "grad_norm",
    "dev_metric", "seconds",
)  # fmt: skip
MPS_RELEASE_STEPS = 50


@dataclass
class Training:
    """What happened in a training: a row per logged step and per epoch's end, and what it cost."""

    history: list[dict[str, Any]] = field(default_factory=list)
    dev: list[float] = field(default_factory=list)  # the selection metric at the end of each epoch
    best_epoch: int = 0
    steps: int = 0
    seconds: float = 0.0  # of training, without the evaluations in between
    examples: int = 0
    supervised_tokens: int = 0
    trained_here: bool = (
        True  # else an earlier invocation finished it: the weights are on disk, not in the model
    )
    micro_batch_size: int | None = (
        None  # examples per forward pass, where memory ran out with the configured ones
    )

    def write_history(self, path: Path) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        atomic_write_text(path, text.getvalue())


def train(
    distiller: Distiller,
    examples: Sequence[Encoded],
    pad_id: int,
    settings: TrainingSettings,
    choice: DeviceChoice,
    seed: int,
    scratch: Path,
    teacher: TeacherTargets | None = None,
    evaluate: Callable[[], float] | None = None,
    keep_best: Callable[[], None] = lambda: None,
    advance: Callable[[int, int], None] = lambda step, of: None,
    checkpoints: Checkpoints | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Training:
    """Train a distiller in place, going on from the latest of its `checkpoints` if there is one.

    `evaluate` gives the selection metric at the end of each epoch and `keep_best` is called whenever it is
    the best so far (the first of equals). RunError if a loss or a gradient is not finite. A first Ctrl-C (or
    SIGTERM) ends the step and writes a checkpoint before it becomes KeyboardInterrupt.
    """
    record = Training()
    stand = checkpoints.latest() if checkpoints else None
    if stand is not None and stand.finished:
        return Training(**stand.state["training"] | {"trained_here": False})
    collator = Collator(pad_id, bucket(choice.device), distiller, teacher)
    trainer = DistillationTrainer(
        distiller,
        args=_arguments(settings, choice, seed, scratch),
        train_dataset=list(examples),  # pyright: ignore[reportArgumentType]
        data_collator=collator,  # pyright: ignore[reportArgumentType]
        callbacks=[Recorder(record, evaluate, keep_best, advance)],
        record=record,
        step_size=settings.batch_size,
        stand=stand,
        say=say,
    )
    trainer.remove_callback(PrinterCallback)
    if checkpoints is None:
        trainer.train()
        record.steps = trainer.state.global_step
        return record
    with stop_requests() as stop_requested:
        trainer.add_callback(Keeper(trainer, checkpoints, stop_requested))
        trainer.train(resume_from_checkpoint=str(stand.folder) if stand else None)
        record.steps = trainer.state.global_step
        if checkpoints.due or checkpoints.there() or stop_requested():
            checkpoints.write(record.steps, {"training": asdict(record)}, {})
        if stop_requested():
            raise KeyboardInterrupt
    return record


class Collator:
    """Encoded examples → {examples, batch, soft targets, counts}, ready for `Distiller.forward`."""

    def __init__(self, pad_id: int, multiple: int, distiller: Distiller, teacher: TeacherTargets | None):
        self.pad_id, self.multiple, self.teacher = pad_id, multiple, teacher
        self.student, self.counts = distiller.student, distiller.counts

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        batch = collate_for(self.student, examples, self.pad_id, self.multiple)
        soft = self.teacher.of(examples) if self.teacher else None
        counts = self.counts(batch, soft)
        return {"examples": examples, "batch": batch, "soft": soft, "counts": counts}


class EpochLoader(DataLoader):
    """A loader that tells its sampler the epoch, as the Trainer expects of loaders."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


class DistillationTrainer(Trainer):
    """The `Trainer` with our batches, our losses and our checkpoints."""

    def __init__(
        self,
        distiller: Distiller,
        record: Training,
        step_size: int,
        stand: Stand | None,
        say: Callable[[str], None],
        **kwargs: Any,
    ):
        super().__init__(model=distiller, **kwargs)
        self.record, self.step_size, self.stand, self.say = record, step_size, stand, say
        self.weights = distiller.weights
        self.loss_is_scaled_for_ga = True  # by the whole step's counts
        self.parts: dict[str, torch.Tensor] = {}  # sums over the steps since the last row of the history
        self.logged = 0  # the step of that row
        self._begun: list[dict[str, Any]] = []  # the micro-batches of this step so far
        self._parts_before: dict[str, torch.Tensor] = {}

    def get_train_dataloader(self) -> DataLoader:
        lengths = [len(example) for example in self.train_dataset]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        sampler = LengthGroupedSampler(lengths, self.step_size, self.args.seed, self.args.train_batch_size)
        return EpochLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)  # pyright: ignore[reportArgumentType]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        soft = inputs["soft"]
        return inputs | {
            "batch": inputs["batch"].to(self.args.device),
            "soft": soft and soft.to(self.args.device),
        }

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, and how many values each part of the loss has in all of them."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = {part: sum(s["counts"][part] for s in samples) for part in samples[0]["counts"]}
        if not counts["tokens"]:
            raise RunError("a batch has no supervised token; nothing can be learned from it")
        self.record.supervised_tokens += counts["tokens"]
        self.record.examples += sum(len(s["batch"].ids) for s in samples)
        self._begun, self._parts_before = [], dict(self.parts)
        return samples, counts

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # counted per part above

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch; where memory runs out, of this step so far, in smaller pieces.

        The loss is a sum divided by the whole step's counts, so that pieces change nothing.
        """
        self._begun.append(inputs)
        todo = [inputs]
        while True:
            try:
                return [self._in_pieces(model, part, num_items_in_batch) for part in todo][-1]
            except OUT_OF_MEMORY as error:
                if not is_out_of_memory(error):
                    raise
                self._halve()
            model.zero_grad()  # a backward pass that was broken off leaves half a gradient
            self.parts, todo = dict(self._parts_before), self._begun

    def _in_pieces(self, model: Any, inputs: dict[str, Any], counts: Any) -> torch.Tensor:
        examples = inputs["examples"]
        size = examples_at_once(self.args.device, len(examples), max(len(e) for e in examples))
        size = min(size, self.record.micro_batch_size or size)
        if len(examples) <= size:
            return super().training_step(model, inputs, counts)
        loss = torch.zeros((), device=self.args.device)
        for at in range(0, len(examples), size):
            loss += super().training_step(model, self.data_collator(examples[at : at + size]), counts)  # pyright: ignore[reportArgumentType]
        return loss

    def _halve(self) -> None:
        size = self.record.micro_batch_size or max(len(inputs["examples"]) for inputs in self._begun)
        if size == 1:
            raise RunError(
                "out of memory with a single example; set gradient_checkpointing, or lower max_length"
            )
        self.record.micro_batch_size = -(-size // 2)
        empty_cache(self.args.device)
        self.say(
            f"out of memory; going on with {self.record.micro_batch_size} examples at a time, the same per step"
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        sums = model(inputs["batch"], inputs["soft"])
        weights = self.weights
        means = {part: total / max(num_items_in_batch[part], 1) for part, total in sums.items()}
        for part, mean in means.items():
            self.parts[part] = self.parts[part] + mean.detach() if part in self.parts else mean.detach()
        return torch.stack([weights[part] * means[part] for part in weights]).sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts' means to a row of training losses; fail if anything in it is not finite."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self.logged)
            logs |= {f"loss_{part}": float(total) / steps for part, total in self.parts.items()}
            self.parts, self.logged = {}, self.state.global_step
            bad = [name for name, value in logs.items() if not math.isfinite(value)]
            if bad:
                raise RunError(
                    f"{', '.join(bad)} not finite at step {self.state.global_step}; lower the learning rate, "
                    "or use dtype float32"
                )
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Nothing: `Keeper` writes what is kept, without pickle."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.stand is not None:
            restore_weights(self, self.stand)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.stand is not None:
            restore_optimizer(self, self.stand)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.stand is not None:
            restore_scaler(self, self.stand)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The last of what is restored, before the first step: no other random numbers are drawn until then."""
        if self.stand is not None:
            restore_random(self.stand)
            self.stand = None  # its tensors take memory

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # its estimate assumes other inputs; cost is measured in seconds and tokens


class Recorder(TrainerCallback):
    """Rows of the history, the selection metric after each epoch, progress."""

    def __init__(
        self,
        record: Training,
        evaluate: Callable[[], float] | None,
        keep_best: Callable[[], None],
        advance: Callable[[int, int], None],
    ):
        self.record, self.evaluate, self.keep_best, self.advance = record, evaluate, keep_best, advance
        self._since = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(state.global_step, state.max_steps)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self._add(state, {k: v for k, v in logs.items() if k in HISTORY})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pause()
        if self.evaluate is not None:
            metric = self.evaluate()
            self.record.dev.append(metric)
            if metric > max(self.record.dev[:-1], default=-math.inf):
                self.record.best_epoch = len(self.record.dev)
                self.keep_best()
            self._add(state, {"dev_metric": metric})
        control.should_log = True  # so that the last steps of an epoch are checked and recorded too
        self._since = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pause()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pause()

    def _pause(self) -> None:
        now = time.perf_counter()
        self.record.seconds, self._since = self.record.seconds + now - self._since, now

    def _add(self, state: Any, row: dict[str, Any]) -> None:
        seconds = self.record.seconds + time.perf_counter() - self._since
        self.record.history.append(
            {"step": state.global_step, "epoch": round(state.epoch, 4), **row, "seconds": round(seconds, 3)}
        )


class Keeper(TrainerCallback):
    """Writes checkpoints: between steps, and after an epoch's evaluation rather than before it."""

    def __init__(
        self, trainer: DistillationTrainer, checkpoints: Checkpoints, stop_requested: Callable[[], bool]
    ):
        self.trainer, self.checkpoints, self.stop_requested = trainer, checkpoints, stop_requested

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.stand is not None:
            restore_counters(self.trainer, self.trainer.stand)
            self.trainer.say(f"going on at step {state.global_step} of {state.max_steps}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends_epoch = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        control.should_save = not ends_epoch and (self.checkpoints.due or self.stop_requested())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        more = state.global_step < state.max_steps
        overtaken = bool(self.checkpoints.there())  # the best weights on disk may be newer than it knows
        control.should_save = more and (overtaken or self.checkpoints.due or self.stop_requested())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.checkpoints.write(state.global_step, *capture(self.trainer), state)
        if self.stop_requested():
            self.trainer.say(f"stopped after step {state.global_step} of {state.max_steps}")
            raise KeyboardInterrupt


def _arguments(
    settings: TrainingSettings, choice: DeviceChoice, seed: int, scratch: Path
) -> TrainingArguments:
    micro = settings.micro_batch_size or settings.batch_size
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type="linear",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=choice.dtype_name == "bfloat16",
        fp16=choice.dtype_name == "float16",
        use_cpu=choice.device.type == "cpu",
        seed=seed,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        torch_empty_cache_steps=MPS_RELEASE_STEPS if choice.device.type == "mps" else None,
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # one device: a run is a unit of work, several runs use several devices
    return arguments
