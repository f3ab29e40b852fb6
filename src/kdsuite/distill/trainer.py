"""The training loop: the transformers `Trainer`, subclassed once, for every method and for the teacher.

What is added: batches of similar length, teacher outputs looked up by example id, losses as sums over the
positions of a whole optimizer step divided by their number (so that gradient accumulation and batch order
change nothing), the parts of the loss in the history, and a run that fails as soon as a number is not finite.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from kdsuite.config import TrainingSettings
from kdsuite.distill.objective import PARTS, Distiller
from kdsuite.distill.targets import TeacherTargets
from kdsuite.errors import RunError
from kdsuite.runtime.device import DeviceChoice, bucket
from kdsuite.runtime.files import atomic_write_text
from kdsuite.tasks.batching import LengthGroupedSampler, collate
from kdsuite.tasks.encoding import Encoded

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
) -> Training:
    """Train a distiller in place.

    `evaluate` gives the selection metric at the end of each epoch and `keep_best` is called whenever it is
    the best so far (the first of equals). RunError if a loss or a gradient is not finite.
    """
    record = Training()
    collator = Collator(pad_id, bucket(choice.device), distiller, teacher)
    trainer = DistillationTrainer(
        distiller,
        args=_arguments(settings, choice, seed, scratch),
        train_dataset=list(examples),  # pyright: ignore[reportArgumentType]
        data_collator=collator,  # pyright: ignore[reportArgumentType]
        callbacks=[Recorder(record, evaluate, keep_best, advance)],
        record=record,
        step_size=settings.batch_size,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    record.steps = trainer.state.global_step
    return record


class Collator:
    """Encoded examples → {batch, soft targets, counts}, ready for `Distiller.forward`."""

    def __init__(self, pad_id: int, multiple: int, distiller: Distiller, teacher: TeacherTargets | None):
        self.pad_id, self.multiple, self.objective, self.teacher = (
            pad_id,
            multiple,
            distiller.objective,
            teacher,
        )

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        batch = collate(examples, self.pad_id, self.multiple)
        soft = self.teacher.of(examples) if self.teacher else None
        return {"batch": batch, "soft": soft, "counts": self.objective.counts(batch, soft)}


class EpochLoader(DataLoader):
    """A loader that tells its sampler the epoch, as the Trainer expects of loaders."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


class DistillationTrainer(Trainer):
    """The `Trainer` with our batches and our losses."""

    def __init__(self, distiller: Distiller, record: Training, step_size: int, **kwargs: Any):
        super().__init__(model=distiller, **kwargs)
        self.record, self.step_size = record, step_size
        self.weights = distiller.objective.weights
        self.loss_is_scaled_for_ga = True  # by the whole step's counts
        self._parts: dict[str, torch.Tensor] = {}  # sums over the steps since the last row of the history
        self._logged = 0

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
        counts = {part: sum(s["counts"].get(part, 0) for s in samples) for part in PARTS}
        if not counts["ce"]:
            raise RunError("a batch has no supervised token; nothing can be learned from it")
        self.record.supervised_tokens += counts["ce"]
        self.record.examples += sum(len(s["batch"].ids) for s in samples)
        return samples, counts

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # counted per part above

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        sums = model(inputs["batch"], inputs["soft"])
        weights = self.weights
        means = {part: total / max(num_items_in_batch[part], 1) for part, total in sums.items()}
        for part, mean in means.items():
            self._parts[part] = self._parts[part] + mean.detach() if part in self._parts else mean.detach()
        return torch.stack([weights[part] * means[part] for part in weights]).sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts' means to a row of training losses; fail if anything in it is not finite."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged)
            logs |= {f"loss_{part}": float(total) / steps for part, total in self._parts.items()}
            self._parts, self._logged = {}, self.state.global_step
            bad = [name for name, value in logs.items() if not math.isfinite(value)]
            if bad:
                raise RunError(
                    f"{', '.join(bad)} not finite at step {self.state.global_step}; lower the learning rate, "
                    "or use dtype float32"
                )
        super().log(logs, start_time)

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
