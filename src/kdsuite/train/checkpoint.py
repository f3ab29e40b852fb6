"""Where a training stands, on disk: all it takes to go on as if nothing had happened.

A checkpoint is a folder `checkpoint-<step>` in the run's own: the weights that are trained (of the student, of
the projectors), optimizer, schedule, loss scale, every random generator and the history so far; the Trainer's
own state beside it. The place in the data needs no more than the step, as their order follows from seed and
epoch. Tensors are safetensors, the rest is JSON; nothing is pickled. A folder appears whole, with the hashes of
its files; the one before it is removed only then. So one checkpoint and the one being written are all there is.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINER_STATE_NAME

from kdsuite.errors import RunError
from kdsuite.store.files import atomic_folder, atomic_write_record, read_json, sha256_file, storage_problem

TENSORS, STATE = "state.safetensors", "state.json"
LIBRARIES = ("torch", "transformers", "accelerate", "peft")  # those that have a say in how a step is computed

Tensors = dict[str, torch.Tensor]


@dataclass
class Stand:
    """A checkpoint that was read: tensors by name, and the rest."""

    folder: Path
    state: dict[str, Any]

    @cached_property
    def tensors(self) -> Tensors:
        return load_file(self.folder / TENSORS)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be trained; then there are no tensors."""
        return bool(self.state["finished"])


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

    def latest(self) -> Stand | None:
        """The newest checkpoint that can be trusted; those that cannot are named and removed."""
        for folder in self.there():
            try:
                return self._read(folder)
            except ValueError as error:
                self.say(f"{folder.name} of {self.folder.name} is not used: {error}")
                shutil.rmtree(folder)
        return None

    def write(self, step: int, state: dict[str, Any], tensors: Tensors, trainer_state: Any = None) -> None:
        """Write a checkpoint and remove the one before it; without `trainer_state`, of a finished training.

        A disk that has no room is told, and the training goes on without.
        """
        self._since = time.monotonic()
        before = self.there()
        facts = {
            "environment": _decisive(self.environment),
            "best": self.best() if state["training"]["best_epoch"] else None,
            "finished": trainer_state is None,
        }
        target = self.folder / f"checkpoint-{step:08d}{'-finished' if trainer_state is None else ''}"
        try:
            with atomic_folder(target) as folder:
                save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / TENSORS)
                if trainer_state is not None:
                    trainer_state.save_to_json(str(folder / TRAINER_STATE_NAME))
                files = {file.name: sha256_file(file) for file in folder.iterdir()}
                atomic_write_record(folder / STATE, state | facts | {"files": files})
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

    def _read(self, folder: Path) -> Stand:
        """ValueError says why it must not be gone on from."""
        try:
            state = read_json(folder / STATE)
            altered = [
                name for name, sha256 in state["files"].items() if sha256_file(folder / name) != sha256
            ]
        except (OSError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is damaged ({error})") from None
        if altered:
            raise ValueError(f"{', '.join(altered)} altered since it was written")
        self._check_environment(state["environment"])
        if state["best"] is not None and state["best"] != self.best():
            raise ValueError("the weights of the best epoch so far are no longer those it was written with")
        return Stand(folder, state)

    def _check_environment(self, then: dict[str, Any]) -> None:
        now = _decisive(self.environment)
        changed = {
            name: f"{name} was {then.get(name)}, is {now[name]}"
            for name in now
            if then.get(name) != now[name]
        }
        if changed.keys() == {"threads"}:
            self.say(
                f"{self.folder.name}: {changed['threads']}; its figures may differ in the last digits from those of a "
                "run that was never interrupted"
            )
        elif changed:
            raise ValueError(f"{'; '.join(changed.values())}; the run begins anew")


def capture(trainer: Any) -> tuple[dict[str, Any], Tensors]:
    """State (JSON-ready) and tensors of a Trainer between two steps. RunError if a weight is not finite."""
    weights = {f"weights.{name}": p for name, p in trainer.model.named_parameters() if p.requires_grad}
    bad = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if bad:
        raise RunError(f"{bad[0]} not finite at step {trainer.state.global_step}; lower the learning rate")
    optimizer, moments = _optimizer_state(trainer.optimizer)
    generators, bits = _random_states()
    scaler = trainer.accelerator.scaler
    state = {
        "optimizer": optimizer,
        "scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": generators,
        "training": asdict(trainer.record),
        "logged": trainer.logged,
    }
    parts = {f"parts.{name}": part for name, part in trainer.parts.items()}
    return state, weights | moments | bits | parts | {"loss": trainer._tr_loss}


def restore_weights(trainer: Any, stand: Stand) -> None:
    """Put the trained weights back in place. RunError if they are not those of this model."""
    weights = _below("weights", stand.tensors)
    own = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    if {name: p.shape for name, p in own.items()} != {name: w.shape for name, w in weights.items()}:
        raise RunError(f"{stand.folder} is of another model; remove it")
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)


def restore_optimizer(trainer: Any, stand: Stand) -> None:
    """Moments, learning rates and the place in the schedule."""
    saved, fresh = stand.state["optimizer"], trainer.optimizer.state_dict()
    values: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in saved["values"].items()}
    for name, tensor in _below("optimizer", stand.tensors).items():
        index, key = name.split(".", 1)
        values.setdefault(int(index), {})[key] = tensor
    groups = [group | rates for group, rates in zip(fresh["param_groups"], saved["rates"], strict=True)]
    trainer.optimizer.load_state_dict({"state": values, "param_groups": groups})
    trainer.lr_scheduler.load_state_dict(stand.state["scheduler"])


def restore_scaler(trainer: Any, stand: Stand) -> None:
    if stand.state["scaler"] is not None and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(stand.state["scaler"])


def restore_random(stand: Stand) -> None:
    """Every generator as it was."""
    saved, bits = stand.state["random"], _below("random", stand.tensors)
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(bits["cpu"])
    if "mps" in bits:
        torch.mps.set_rng_state(bits["mps"])
    cuda = [bits[key] for key in sorted(bits) if key.startswith("cuda")]
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


def restore_counters(trainer: Any, stand: Stand) -> None:
    """The history so far, and the sums for its next row."""
    for name, value in stand.state["training"].items():
        setattr(trainer.record, name, value)
    tensors = stand.tensors
    trainer.logged = stand.state["logged"]
    trainer.parts = {name: part.to(trainer.args.device) for name, part in _below("parts", tensors).items()}
    trainer._tr_loss = tensors["loss"].to(trainer.args.device)
    trainer._globalstep_last_logged = stand.state["logged"]


def _decisive(environment: dict[str, Any]) -> dict[str, Any]:
    """What of an environment decides the digits of a step."""
    libraries = {name: environment["libraries"][name] for name in LIBRARIES}
    return libraries | {name: environment[name] for name in ("device", "dtype", "threads")}


def _optimizer_state(optimizer: Any) -> tuple[dict[str, Any], Tensors]:
    state = optimizer.state_dict()
    values: dict[str, dict[str, Any]] = {}
    tensors: Tensors = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                values.setdefault(str(index), {})[key] = value
    rates = [{k: v for k, v in g.items() if k in ("lr", "initial_lr")} for g in state["param_groups"]]
    return {"values": values, "rates": rates}, tensors


def _random_states() -> tuple[dict[str, Any], Tensors]:
    name, keys, *rest = np.random.get_state()
    bits = {"random.cpu": torch.get_rng_state()}
    if torch.backends.mps.is_available():
        bits["random.mps"] = torch.mps.get_rng_state()
    if torch.cuda.is_available():
        bits |= {f"random.cuda{i:03d}": bit for i, bit in enumerate(torch.cuda.get_rng_state_all())}
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}, bits


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
