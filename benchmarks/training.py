"""How the suite trains and caches, for the programs that time it: some steps of an epoch at a given shape.

The teacher's cached outputs are random, in the suite's own cache on disk: how long they take to read and to learn
from does not depend on what they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measure import clocked
from peft.tuners.lora import Linear
from shapes import END, TEACHER, Shape, as_plain, examples, model

from kdsuite.config import LoraSettings, TrainingSettings
from kdsuite.methods.alignment import VocabularyMap
from kdsuite.methods.b0 import B0
from kdsuite.methods.base import DISTRIBUTIONS, STATES, Method, OnPolicy
from kdsuite.methods.kd1 import KD1
from kdsuite.methods.kd3 import KD3, Kd3Settings, layer_pairs
from kdsuite.methods.rollouts import Rollouts
from kdsuite.methods.targets import TeacherTargets
from kdsuite.methods.terms import Distiller, Divergence, Features, OnTarget, Term
from kdsuite.models.adapters import Adapted
from kdsuite.models.loading import trainable
from kdsuite.runtime.device import choose
from kdsuite.tasks.batching import LengthGroupedSampler, batches_by_length
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.cached import CachedTeacher, build_cache
from kdsuite.teacher.local import LocalTeacher, OutputSettings, Record, ask
from kdsuite.train.checkpoint import Training
from kdsuite.train.loop import Material, train

EPOCH = {"SST-2": 2_000, "SQuAD": 500}  # examples
ALPHA, TEMPERATURE, KEPT, FEATURE_WEIGHT = 0.5, 2.0, 64, 1.0
NEW = 32  # tokens of every sampled answer, the default of `max_new_tokens`: random weights come to no end


@dataclass(frozen=True)
class Case:
    """`steps` optimizer steps of `batch` examples from an epoch of a task's."""

    task: str
    student: Shape
    batch: int
    steps: int
    teacher: Shape = TEACHER
    dtype: str = "float32"  # of the matrix products
    device: str = "cpu"
    adapters: bool = False  # the student learns in adapters, with dropout, not in all its weights

    @property
    def epoch(self) -> list[Encoded]:
        return examples(self.task, EPOCH[self.task], self.student)

    @property
    def settings(self) -> TrainingSettings:
        whole = -(-EPOCH[self.task] // self.batch)
        return TrainingSettings(batch_size=self.batch, epochs=(self.steps - 0.5) / whole)  # rounded up to steps

    def batches(self, seed: int) -> list[list[Encoded]]:
        """The examples of the steps that a training with this seed begins with."""
        epoch = self.epoch
        sampler = LengthGroupedSampler([len(e) for e in epoch], self.batch, seed)
        return [[epoch[i] for i in batch] for batch, _ in zip(sampler, range(self.steps), strict=False)]

    def asked(self, seed: int) -> list[list[Encoded]]:
        """As many batches of the teacher's one pass for the cache, which are of similar length, too."""
        epoch = self.epoch
        batches = batches_by_length([len(e) for e in epoch], self.batch)
        chosen = np.random.default_rng(seed).choice(len(batches), self.steps, replace=False)
        return [[epoch[i] for i in batches[at]] for at in chosen]


@dataclass(frozen=True)
class Steps:
    """Steps to be timed, and the examples in them (which may be known only afterwards)."""

    run: Callable[[], object]
    tokens: Callable[[], int]  # of prompts and targets, as any library needs them
    sampling: Sequence[float] = ()  # CPU seconds that the student's writing takes, where it writes


def tokens(of: Sequence[Encoded]) -> int:
    return sum(len(as_plain(e)["input_ids"]) for e in of)


def student_of(case: Case) -> Any:
    """What learns: adapters on frozen weights in the case's dtype, or all weights, in float32."""
    if not case.adapters:
        return model(case.student, device=case.device)
    frozen = model(case.student, device=case.device, dtype=getattr(torch, case.dtype)).requires_grad_(False)
    return trainable(frozen, LoraSettings())


def as_peft_has_it(student: Any) -> Any:
    """The student with peft's own forward pass of adapters."""
    for module in student.modules():
        if type(module) is Adapted:
            module.__class__ = Linear  # pyright: ignore[reportAttributeAccessIssue]
    return student


def teacher_of(case: Case) -> Any:
    made = model(case.teacher, device=case.device, dtype=getattr(torch, case.dtype))
    return made.eval().requires_grad_(False)


def training(method: Method, case: Case) -> Callable[[int], Steps]:
    """Steps of a method's training; each call goes on with the same student, by its seed with other steps."""
    needs, teacher = method.needs, None
    soft = TEMPERATURE if DISTRIBUTIONS in needs else None
    depths = case.student.layers, case.teacher.layers
    pairs = layer_pairs(*depths, "proportional", Kd3Settings().max_layers) if STATES in needs else []
    terms: dict[str, Term] = {"ce": OnTarget(ALPHA if soft else 1.0)}
    if soft:
        terms["kd"] = Divergence(1 - ALPHA, soft)
    if pairs:
        widths = [(case.student.width, case.teacher.width)] * len(pairs)
        terms["feature"] = Features(FEATURE_WEIGHT, "cosine", pairs, widths)
    if soft or pairs:
        layers = tuple(other for _, other in pairs)
        teacher = targets(_made_up_cache(case, layers), case.student.vocabulary, soft, layers)
    distiller = Distiller(student_of(case), case.student.vocabulary, terms)
    return lambda seed: Steps(_run(case, distiller, teacher, seed), lambda: sum(map(tokens, case.batches(seed))))


def _run(
    case: Case, distiller: Distiller, teacher: TeacherTargets | Rollouts | None, seed: int
) -> Callable[[], Training]:
    material = Material(case.epoch, END, case.settings, seed, teacher)
    return partial(train, distiller, material, choose(case.device, case.dtype, torch.get_num_threads()))


def on_policy(case: Case) -> Callable[[int], Steps]:
    """Steps of GKD in which the student writes all answers."""
    distiller, teacher = on_policy_distiller(case), teacher_of(case)

    def prepare(seed: int) -> Steps:
        written = rollouts(case, teacher, case.epoch)
        sampling = clocked(written, "learned")
        count = sum(len(e.prompt) + NEW for batch in case.batches(seed) for e in batch)
        return Steps(_run(case, distiller, written, seed), lambda: count, sampling)

    return prepare


def on_policy_distiller(case: Case) -> Distiller:
    return Distiller(student_of(case), case.student.vocabulary, {"kd": Divergence(1.0, 1.0, "jsd")})


def rollouts(case: Case, teacher: Any, epoch: Sequence[Encoded], kept: int = KEPT) -> Rollouts:
    """What the student writes and a loaded teacher says of it; any token is a letter, none ends a turn."""
    count = case.student.vocabulary
    chat: Any = SimpleNamespace(
        pad_id=END,
        token_bytes=[b"a"] * count,
        final_ids=frozenset([count]),
        gap=b"",
        ending_ids=[count],
        cut=list,
        bytes_of=lambda ids: b"a" * len(ids),
    )
    live = LocalTeacher(teacher, chat, OutputSettings(kept))
    return Rollouts(OnPolicy(1.0, 1.0, 1.0), targets(live, count, 1.0), live, chat, chat, {e.id: e for e in epoch}, NEW)


def _made_up_cache(case: Case, layers: Sequence[int]) -> CachedTeacher:
    rng = np.random.default_rng(0)

    def record(example: Encoded) -> Record:
        count = example.choices.count(example.gold)
        made: Record = {
            "topk_ids": rng.integers(case.student.vocabulary, size=(count, KEPT), dtype=np.int32),
            "topk_logprobs": -rng.uniform(5, 15, (count, KEPT)).astype(np.float32),
            "logsumexp": np.full((count, 2), 12, dtype=np.float32),
            "log_tail": np.full((count, 2), -0.5, dtype=np.float32),
            "spans": np.array(example.spans[example.gold_slice], dtype=np.int32),
        }
        if case.task == "SST-2":
            made["class_scores"] = -rng.uniform(0, 5, 2).astype(np.float32)
        width = case.teacher.width
        return made | {f"hidden_{i}": rng.normal(size=(count, width)).astype(np.float16) for i in layers}

    with tempfile.TemporaryDirectory() as folder:  # the files stay mapped when their names are gone
        key = {"outputs": {"temperatures": [TEMPERATURE]}}
        return build_cache(Path(folder), key, case.epoch, lambda some: [record(e) for e in some], 16)


def targets(cache: Any, vocabulary: int, temperature: float | None, layers: Sequence[int] = ()) -> TeacherTargets:
    """A teacher with the student's tokenizer."""
    same = VocabularyMap(np.arange(vocabulary), vocabulary, vocabulary)
    return TeacherTargets(cache, same, temperature, tuple(layers))


def asking(case: Case) -> Callable[[int], Steps]:
    """Batches of the teacher's pass for the cache."""
    teacher = teacher_of(case)
    kept = OutputSettings(KEPT, "float32", (TEMPERATURE,), (), 2 if case.task == "SST-2" else 0)
    chat: Any = SimpleNamespace(pad_id=END, token_bytes=range(case.teacher.vocabulary))

    def prepare(seed: int) -> Steps:
        batches = case.asked(seed)
        return Steps(lambda: [ask(teacher, chat, some, kept) for some in batches], lambda: sum(map(tokens, batches)))

    return prepare


fine_tuning = partial(training, B0)
logit_distillation = partial(training, KD1)
feature_distillation = partial(training, KD3)
