"""Where a training stands, in memory and on disk: all it takes to go on as if nothing had happened.

A checkpoint is a folder `checkpoint-<step>` in the run's own: the weights that are trained (of the student, of
the projectors), optimizer, schedule, loss scale, every random generator and the history so far. The place in the
data needs no more than the step, as their order follows from seed and epoch. Tensors are safetensors, the rest is
JSON; nothing is pickled. A folder appears whole, with the hashes of its files; the one before it is removed only
then. So one checkpoint and the one being written are all there is.
"""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from kdsuite.errors import RunError
from kdsuite.methods.terms import Distiller
from kdsuite.runtime.ranks import here, placed, whole
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import atomic_write_text, storage_problem

TENSORS = "state.safetensors"
FORMAT = 1  # raise it when a checkpoint means something else: earlier ones are then not gone on from
HISTORY = (*"step epoch loss loss_ce loss_kd loss_feature learning_rate grad_norm dev_metric seconds".split(),)
LIBRARIES = ("torch", "transformers", "accelerate", "peft")  # those that have a say in how a step is computed

Tensors = dict[str, torch.Tensor]


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
    trained_here: bool = True  # else an earlier invocation did it: the weights are on disk, not in the model
    peak_memory_mb: float = 0.0  # of the processes that it was gone on from
    micro_batch_size: int | None = None  # examples per forward pass, where memory ran out with the configured

    @property
    def timing(self) -> dict[str, Any]:
        seconds = max(self.seconds, 1e-9)
        return {
            "train_seconds": self.seconds,
            "steps": self.steps,
            "examples_per_second": self.examples / seconds,
            "supervised_tokens_per_second": self.supervised_tokens / seconds,
            "micro_batch_size": self.micro_batch_size,
        }

    def write_history(self, path: Path) -> None:
        """As CSV: the columns that every run has, then the parts of the loss that only its method has."""
        columns = dict.fromkeys([*HISTORY, *(name for row in self.history for name in row)])
        table = pd.DataFrame(self.history, columns=list(columns))
        atomic_write_text(path, table.to_csv(index=False, lineterminator="\n"))


@dataclass
class State:
    """All that a step changes: what a checkpoint holds, beside the random generators."""

    model: Distiller
    optimizer: Any
    scheduler: Any
    scaler: Any  # of float16's gradients; else None
    record: Training = field(default_factory=Training)
    sums: Tensors = field(default_factory=dict)  # losses by column of the history, since its last row
    logged: int = 0  # the step of that row

    @property
    def trained(self) -> Tensors:
        """The weights that are trained, and what terms of a loss keep over its steps."""
        trained: Tensors = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return trained | self.model.terms.state_dict(prefix="terms.", keep_vars=True)

    def capture(self) -> tuple[dict[str, Any], Tensors]:
        """JSON-ready values, and tensors by kind and name, whole. RunError if a weight is not finite."""
        weights = {name: whole(weight.detach()) for name, weight in self.trained.items()}
        bad = [name for name, weight in weights.items() if not weight.isfinite().all()]
        if bad:
            raise RunError(f"{bad[0]} not finite at step {self.record.steps}; lower the learning rate")
        generators, tensors = _random_states()
        tensors |= {f"weights.{name}": weight for name, weight in weights.items()}
        tensors |= {f"sums.{name}": total for name, total in self.sums.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": whole(moment) for name, moment in moments.items()}
        return {
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler and self.scaler.state_dict(),
            "random": generators,
            "logged": self.logged,
        }, tensors

    def restore(self, saved: dict[str, Any]) -> None:
        """Everything as in a checkpoint, the random generators last. RunError if it is of another model."""
        tensors = load_file(saved["folder"] / TENSORS)
        weights, trained = _below("weights", tensors), self.trained
        if {name: p.shape for name, p in trained.items()} != {name: w.shape for name, w in weights.items()}:
            raise RunError(f"{saved['folder']} is of another model; remove it")
        with torch.no_grad():
            for name, weight in weights.items():
                trained[name].copy_(placed(weight, trained[name]))
        moments: dict[int, Tensors] = {}
        optimized = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in _below("optimizer", tensors).items():
            index, key = name.split(".", 1)
            like = optimized[int(index)]
            moments.setdefault(int(index), {})[key] = placed(tensor, like) if tensor.shape == like.shape else tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.scheduler.load_state_dict(saved["scheduler"])
        rates = [group | {"lr": rate} for group, rate in zip(groups, self.scheduler.get_last_lr(), strict=True)]
        self.optimizer.load_state_dict({"state": moments, "param_groups": rates})
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        device = next(iter(trained.values())).device
        self.sums = {name: total.to(device) for name, total in _below("sums", tensors).items()}
        self.logged = saved["logged"]
        for name, value in saved["training"].items():
            setattr(self.record, name, value)
        _restore_random(saved["random"], _below("random", tensors))


@dataclass
class Checkpoints:
    """The checkpoints of one run below `folder`, written every `minutes`.

    `environment` is what `runtime.environment.capture` tells; `say` is told what is not trusted, and why;
    `best` identifies the weights of the best epoch as they lie on disk now (None where there are none).
    """

    folder: Path
    minutes: float
    environment: dict[str, Any]
    say: Callable[[str], None] = lambda line: None
    best: Callable[[], str | None] = lambda: None

    def __post_init__(self) -> None:
        self._since = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._since >= 60 * self.minutes

    def there(self) -> list[Path]:
        """The folders of this run's checkpoints, the newest first."""
        return sorted(self.folder.glob("checkpoint-*"), reverse=True)

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be trusted, with its `folder`; those that cannot are named and removed."""
        return here().agreed(self._latest)

    def _latest(self) -> dict[str, Any] | None:
        for folder in self.there():
            state = Artefact(folder, FORMAT, self.say, "it is removed").read()
            problem = state and self._problem(state)
            if state and not problem:
                return state | {"folder": folder}
            if problem:
                self.say(f"{folder.name} of {self.folder.name} is not used: {problem}")
            shutil.rmtree(folder)
        return None

    def write(self, state: State, finished: bool = False) -> None:
        """Write a checkpoint and remove the one before it; of a finished training without any tensors.

        A disk that has no room is told, and the training goes on without.
        """
        captured = ({}, {}) if finished else state.capture()
        here().agreed(lambda: self._write(state.record, *captured, finished))

    def _write(self, record: Training, values: dict[str, Any], tensors: Tensors, finished: bool) -> None:
        self._since = time.monotonic()
        before, step = self.there(), record.steps
        values |= {
            "training": asdict(record),
            "environment": _decisive(self.environment),
            "best": self.best() if record.best_epoch else None,
            "finished": finished,
        }

        def make(folder: Path) -> dict[str, Any]:
            save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / TENSORS)
            return values

        target = self.folder / f"checkpoint-{step:08d}{'-finished' if finished else ''}"
        try:
            Artefact(target, FORMAT).build(make)
        except Exception as error:
            problem = storage_problem(error)
            if problem is None:
                raise
            self.say(f"no checkpoint of {self.folder.name} at step {step}: {problem}; it goes on without")
            return
        for old in set(before) - {target}:
            shutil.rmtree(old)

    def clear(self) -> None:
        """Remove all of them: the run is completed."""
        for folder in self.there():
            shutil.rmtree(folder)

    def _problem(self, state: dict[str, Any]) -> str | None:
        """Why it must not be gone on from; other threads are only told."""
        then, now = state["environment"], _decisive(self.environment)
        changed = {name: f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]}
        if changed.keys() == {"threads"}:
            self.say(
                f"{self.folder.name}: {changed['threads']}; its figures may differ in the last digits from those of a "
                "run that was never interrupted"
            )
        elif changed:
            return f"{'; '.join(changed.values())}; the run begins anew"
        if state["best"] is not None and state["best"] != self.best():
            return "the weights of the best epoch so far are no longer those it was written with"
        return None


def _decisive(environment: dict[str, Any]) -> dict[str, Any]:
    """What of an environment decides the digits of a step."""
    libraries = {name: environment["libraries"][name] for name in LIBRARIES}
    return libraries | {name: environment[name] for name in ("device", "dtype", "threads")}


def _random_states() -> tuple[dict[str, Any], Tensors]:
    name, keys, *rest = np.random.get_state()
    bits = {"random.cpu": torch.get_rng_state()}
    if torch.backends.mps.is_available():
        bits["random.mps"] = torch.mps.get_rng_state()
    bits |= {f"random.cuda{i:03d}": bit for i, bit in enumerate(torch.cuda.get_rng_state_all())}
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}, bits


def _restore_random(saved: dict[str, Any], bits: Tensors) -> None:
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(bits["cpu"])
    if "mps" in bits and torch.backends.mps.is_available():
        torch.mps.set_rng_state(bits["mps"])
    states = [bits[key] for key in sorted(bits) if key.startswith("cuda")]
    torch.cuda.set_rng_state_all(states[: torch.cuda.device_count()])  # a worker has one GPU of those that there were


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
