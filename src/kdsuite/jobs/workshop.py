"""What the runs of one process share, read-only: examples, tokenizers, encodings, base models, teacher outputs.

Everything is derived from the settings and the results folder and made on first use, so a stage can be run
alone and a run could as well be done by another process: nothing else is passed between stages.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from kdsuite.config import OFFLINE_STUDENT, OFFLINE_TEACHER, ModelSettings, Settings
from kdsuite.errors import RunError
from kdsuite.evaluate.predict import EvaluationSet
from kdsuite.methods.alignment import VocabularyMap, map_vocabulary
from kdsuite.methods.features import LayerPair, layer_pairs
from kdsuite.methods.registry import METHODS
from kdsuite.models import loading
from kdsuite.models.loading import ModelSource, TooLarge
from kdsuite.plan import student_identity, teacher_identity
from kdsuite.runtime.device import DeviceChoice, empty_cache
from kdsuite.runtime.garbage import garbage_kept
from kdsuite.runtime.progress import Progress
from kdsuite.store.files import (
    atomic_folder,
    atomic_write_record,
    atomic_write_text,
    fingerprint,
    read_json,
    remove_temporaries,
    sha256_file,
)
from kdsuite.store.layout import ANSWERS, CACHES, QUALITY
from kdsuite.store.locks import Locks
from kdsuite.store.records import Registry
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode
from kdsuite.tasks.example import Example, Task
from kdsuite.tasks.registry import TASKS
from kdsuite.tasks.splits import Splits, make_splits, source_fingerprint
from kdsuite.teacher.cached import FORMAT, CachedTeacher, cache_fingerprint, is_complete, targets_fingerprint
from kdsuite.teacher.local import LocalTeacher, OutputSettings

TEACHER = "teacher"
LOCKS = ".locks"
ENCODED_AT_ONCE = 1000  # examples that are counted together
PROMPTS = 8  # per split: what the fingerprint of a run covers of them


@dataclass(eq=False)
class Workshop:
    """One process's view of a results folder under given settings."""

    settings: Settings
    results: Path
    choice: DeviceChoice
    registry: Registry
    progress: Progress

    @cached_property
    def locks(self) -> Locks:
        """Who works on what, where several processes share the results folder."""
        return Locks(self.results / LOCKS, self.progress.say)

    # --- sources and fingerprints

    @cache
    def offline_models(self) -> dict[str, Path]:
        """Folders of the offline models, built on first use; empty when no setting names one."""
        models = self.settings.models
        names = {models.teacher.name, models.teacher.fallback}
        names |= {self.settings.student(s).name for s in self.settings.trained_students}
        if not names & {OFFLINE_TEACHER, OFFLINE_STUDENT}:
            return {}
        from kdsuite.extras.offline.models import build_offline_models

        with self.locks.hold("offline-models"):
            teacher, student = build_offline_models(
                self.results / "models" / "offline", models.offline, self.progress
            )
        return {OFFLINE_TEACHER: teacher, OFFLINE_STUDENT: student}

    def model_settings(self, role: str) -> ModelSettings:
        """What the settings say of a role's model."""
        return self.settings.models.teacher if role == TEACHER else self.settings.student(role)

    @cache
    def source(self, role: str) -> ModelSource:
        """Where the model of a role (`teacher`, `S1`, `S2`) comes from; the teacher's fallback if need be."""
        if role != TEACHER:
            return self._pinned(role, self.settings.student(role))
        teacher = self.settings.models.teacher

        def attempt(model: ModelSettings) -> ModelSource:
            if model is teacher and (reason := self._ran_out_of_memory()):
                raise TooLarge(reason)
            return self._pinned(role, model)

        return loading.with_fallback(teacher, attempt, self.progress.say)

    def _pinned(self, role: str, model: ModelSettings) -> ModelSource:
        source = loading.source_of(model, self.offline_models())
        return loading.pinned(source, self.choice.device, self.weights_dtype(role))

    def weights_dtype(self, role: str) -> torch.dtype:
        """Of a role's weights; fully trained models need float32."""
        return self.choice.dtype if self.settings.models.lora.enabled or role == TEACHER else torch.float32

    def can_fall_back(self) -> bool:
        """Whether there is another teacher to be taken instead of this one."""
        return self.settings.models.teacher.fallback is not None and self.source(TEACHER).stands_in is None

    def fall_back(self, reason: str) -> None:
        """Take the fallback teacher from now on; later invocations with this teacher and device do so at once."""
        atomic_write_record(self._fallback_note, {"of": self._fallback_key(), "reason": reason})
        self.forget()

    def forget(self) -> None:
        """Drop all that was derived or loaded; it is made anew from the settings and the results folder."""
        for member in vars(Workshop).values():
            if hasattr(member, "cache_clear"):
                member.cache_clear()
        self.free()

    def let_go_of_models(self) -> None:
        """Give back the memory of all loaded models; what needs one loads it again."""
        Workshop.base.cache_clear()
        Workshop.teacher_model.cache_clear()
        self.free()

    def free(self) -> None:
        """Give back the memory of what nobody holds any more."""
        gc.collect()  # a trainer's parts refer to each other
        empty_cache(self.choice.device)

    @property
    def _fallback_note(self) -> Path:
        return self.results / "models" / "teacher_fallback.json"

    def _fallback_key(self) -> str:
        teacher = self.settings.models.teacher
        content = loading.source_of(teacher, self.offline_models()).fingerprint
        named = teacher.model_dump(exclude={"batch_size"})
        return fingerprint([named, content, str(self.choice.device), self.choice.dtype_name])

    def _ran_out_of_memory(self) -> str | None:
        """What an earlier invocation noted about this teacher on this device."""
        try:
            note = read_json(self._fallback_note)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.progress.say(f"{error}; the teacher is tried again")
            return None
        if note.get("of") != self._fallback_key():
            return None
        return f"{note['reason']}; to try it again, delete {self._fallback_note}"

    @cache
    def fingerprints(self, task: str) -> dict[str, str]:
        """Fingerprints of what the runs of a task read: `data`, and `teacher` and each student with their prompts."""
        roles = (TEACHER, *self.settings.trained_students)
        return {"data": source_fingerprint(self.settings.tasks[task])} | {
            role: fingerprint([self.source(role).fingerprint, self._prompts(task, role)]) for role in roles
        }

    def _prompts(self, task: str, role: str) -> list[Any]:
        """How a role reads the first examples of each split, and what its answers are and end with."""
        chat, kind = self.chat(role), self.task(task)
        examples = [e for _, split in sorted(self.splits(task).items()) for e in split[:PROMPTS]]
        labels = [chat.answer(text).ids for text in kind.label_texts(self.settings.tasks[task]).values()]
        return [chat.prompt_ids([kind.messages(e) for e in examples]), labels, chat.ending_ids, chat.end_ids]

    # --- examples

    def task(self, name: str) -> Task:
        return TASKS[name]

    @cache
    def splits(self, task: str) -> Splits:
        """The examples of a task, from `processed_data/<task>` or, if that is not theirs, made anew."""
        folder = self.results / "processed_data" / task
        settings = self.settings.tasks[task]
        sizes = settings.model_dump(
            include={"source", "train_size", "dev_size", "validation_size", "sample_seed"}
        )
        teacher = settings.teacher_training.model_dump(include={"enabled", "train_size"})
        identity = fingerprint([source_fingerprint(settings), sizes, teacher])
        with self.locks.hold(f"data-{task}"):
            stored = _read_splits(folder, identity, self.progress.say)
            if stored is not None:
                return stored
            remove_temporaries(folder.parent, task)
            splits = make_splits(self.task(task), settings)
            _write_splits(folder, identity, settings.source, settings.revision, splits)
            return splits

    @cache
    def encoded(self, task: str, role: str, split: str) -> list[Encoded]:
        """Training form of a split in a role's tokens."""
        return self._encode(task, role, self.splits(task)[split], split)

    @cache
    def encoded_answers(self, task: str, role: str) -> list[Encoded]:
        """Training form of `train` with the teacher's answers as targets, as far as they pass the filter."""
        lessons = self.lessons(task)
        examples = [_with_target(e, lessons[e.id]) for e in self.splits(task)["train"] if e.id in lessons]
        return self._encode(task, role, examples, "the teacher's answers")

    def _encode(self, task: str, role: str, examples: Sequence[Example], what: str) -> list[Encoded]:
        about = self.task(task), self.chat(role)
        with self._encoding(task, role, what, examples) as pieces:
            return [e for some in pieces for e in encode(*about, some, self.settings.tasks[task])]

    @cache
    def evaluation_set(self, task: str, role: str, split: str) -> EvaluationSet:
        about, examples = (self.task(task), self.chat(role)), self.splits(task)[split]
        with self._encoding(task, role, split, examples) as pieces:
            return EvaluationSet.joined(
                [EvaluationSet.of(*about, some, self.settings.tasks[task]) for some in pieces]
            )

    @contextmanager
    def _encoding(
        self, task: str, role: str, what: str, examples: Sequence[Example]
    ) -> Iterator[Iterator[Sequence[Example]]]:
        """Examples in pieces, and how far it is."""
        label = f"encoding {what} of {task} for {role}"
        with garbage_kept(), self.progress.work(label, len(examples), "examples") as work:
            yield work.pieces(examples, ENCODED_AT_ONCE)

    # --- models

    @cache
    def chat(self, role: str) -> ChatTokenizer:
        return loading.load_chat(self.source(role))

    @cache
    def config(self, role: str) -> Any:
        return loading.load_config(self.source(role))

    @cache
    def base(self, role: str) -> Any:
        """A role's pretrained model; frozen, never changed."""
        self.progress.say(f"loading {self.source(role).name}")
        return loading.load_model(self.source(role), self.choice.device, self.weights_dtype(role))

    @contextmanager
    def for_training(self, role: str, checkpointing: bool) -> Iterator[Any]:
        """A role's model ready for training: the shared base with a new adapter, or a copy of its own."""
        lora = self.settings.models.lora
        if lora.enabled:
            model = loading.trainable(self.base(role), lora)
        else:
            model = loading.trainable(copy.deepcopy(self.base(role)).float(), lora)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            yield model
        finally:
            if lora.enabled:
                model.unload()
                self.base(role).requires_grad_(False)

    def precision(self) -> torch.autocast:
        """Matrix products in the chosen dtype, whatever the dtype of the weights."""
        dtype = self.choice.dtype
        enabled = dtype != torch.float32
        return torch.autocast(self.choice.device.type, dtype if enabled else None, enabled=enabled)

    def model_folder(self, run_id: str) -> Path:
        return self.results / "models" / run_id

    # --- the teacher

    @cache
    def vocabulary_map(self, student: str) -> VocabularyMap:
        return map_vocabulary(self.chat(TEACHER), self.chat(student))

    def layer_pairs(self, student: str) -> list[LayerPair]:
        kd3 = self.settings.kd3
        depth = self.config(student).num_hidden_layers, self.config(TEACHER).num_hidden_layers
        return layer_pairs(*depth, kd3.layers, kd3.max_layers)

    @cache
    def teacher_model(self, task: str) -> Any:
        """The teacher of a task: fine-tuned if the settings say so (its run must be complete), else as it came."""
        if not self.settings.tasks[task].teacher_training.enabled:
            return self.base(TEACHER)
        folder = self.model_folder(f"{TEACHER}_{task}")
        if not folder.is_dir():
            raise RunError(f"the teacher of {task} is not fine-tuned yet; run `kdsuite cache`")
        self.progress.say(f"loading {self.source(TEACHER).name}, fine-tuned on {task}")
        return loading.load_trained(self.source(TEACHER), folder, self.choice.device, self.choice.dtype)

    @cache
    def output_settings(self, task: str) -> OutputSettings:
        features = self.settings.kd3.cache and any(METHODS[m].features for m in self.settings.methods)
        pairs = [pair for s in self.settings.trained_students for pair in self.layer_pairs(s)]
        return OutputSettings(
            top_k=self.settings.kd1.top_k,
            dtype=self.settings.kd1.dtype,
            temperatures=tuple(sorted(t for t in self.settings.kd1.temperatures if t != 1.0)),
            layers=tuple(sorted({layer for _, layer in pairs})) if features else (),
            labels=len(self.task(task).labels or ()),
        )

    @cache
    def cache_key(self, task: str) -> dict[str, Any]:
        """Everything that the teacher outputs of a task depend on, JSON-ready."""
        key = {
            "format": FORMAT,
            "teacher": teacher_identity(self.settings, task, self.fingerprints(task)),
            "dtype": self.choice.dtype_name,
            "data": {
                "source": self.settings.tasks[task].source,
                "fingerprint": self.fingerprints(task)["data"],
            },
            "targets": targets_fingerprint(self.encoded(task, TEACHER, "train")),
            "generation": self.settings.tasks[task].model_dump(
                include={"max_length", "doc_stride", "max_new_tokens"}
            ),
            "outputs": vars(self.output_settings(task)),
        }
        return json.loads(json.dumps(key))

    def cache_folder(self, task: str) -> Path:
        return self.results / CACHES / task / cache_fingerprint(self.cache_key(task))

    @cache
    def teacher_cache(self, task: str) -> CachedTeacher:
        """The cached outputs of a task. RunError when they are not complete."""
        folder = self.cache_folder(task)
        if not is_complete(folder, self.cache_key(task)):
            raise RunError(f"the teacher outputs of {task} are not complete; run `kdsuite cache`")
        return CachedTeacher(folder, self.task(task).labels or ())

    @cache
    def answers(self, task: str) -> list[dict[str, Any]]:
        """The teacher's answers: id, raw, answer (cleaned), confidence, scores. RunError when they are not there."""
        path = self.cache_folder(task) / ANSWERS
        if not path.exists():
            raise RunError(f"the teacher's answers of {task} are not there; run `kdsuite cache`")
        if self.quality(task).get("answers_sha256") != sha256_file(path):
            raise RunError(f"{path} is not what was written; run `kdsuite cache`")
        return [json.loads(line) for line in _lines(path.read_text(encoding="utf-8"))]

    @cache
    def lessons(self, task: str) -> dict[str, str]:
        """What KD2 learns: the cleaned answers by example id that are not empty and pass its filter."""
        kept = {row["id"]: row["answer"] for row in self.answers(task) if self._passes(row)}
        if not kept:
            raise RunError(
                f"none of the teacher's answers of {task} passes kd2.filter {self.settings.kd2.filter}; "
                "choose another filter, or lower kd2.min_confidence"
            )
        return kept

    def _passes(self, row: dict[str, Any]) -> bool:
        kd2 = self.settings.kd2
        if not row["answer"]:
            return False
        if kd2.filter == "agrees_with_gold":
            return max(row["scores"].get(name, 0.0) for name in ("accuracy", "exact_match")) == 1.0
        return kd2.filter == "all" or row["confidence"] >= kd2.min_confidence

    def teacher_of(self, task: str, keep: OutputSettings) -> LocalTeacher:
        """The teacher of a task, asked about examples by id, whosever tokens they are in."""
        known = {e.id: e for e in self.encoded(task, TEACHER, "train")}
        settings, chat = self.settings.tasks[task], self.chat(TEACHER)
        return LocalTeacher(
            self.teacher_model(task), chat, keep, settings.max_new_tokens, known, self.precision
        )

    @cache
    def quality(self, task: str) -> dict[str, Any]:
        """Teacher quality on the training set, in percent, and coverage; {} when it was not measured.

        The coverage of a student that is no longer the one of its name is left out.
        """
        quality = self.stored_quality(task)
        covered = {
            student: shares
            for student, shares in quality.get("coverage", {}).items()
            if student in self.settings.trained_students
            and shares.get("student") == self.student_key(task, student)
        }
        rest = {name: value for name, value in quality.items() if name != "coverage"}
        return rest | ({"coverage": covered} if covered else {})

    def stored_quality(self, task: str) -> dict[str, Any]:
        """What `quality` is made of, as it is on disk."""
        path = self.cache_folder(task) / QUALITY
        try:
            return read_json(path) if path.exists() else {}
        except ValueError as error:
            self.progress.say(f"{error}; it is measured again")
            return {}

    def student_key(self, task: str, student: str) -> str:
        """Identifies a student by its content and its settings, where something is stored under its name."""
        return fingerprint(student_identity(self.settings, student, self.fingerprints(task)))


def _with_target(example: Example, answer: str) -> Example:
    start = example.inputs.get("context", "").find(answer)
    return replace(example, target=answer, answer_start=start if start >= 0 else example.answer_start)


def _lines(text: str) -> list[str]:
    """JSON lines; `splitlines` would also cut at separators that may stand inside a string."""
    return text.split("\n")[:-1]


def _read_splits(folder: Path, identity: str, say: Callable[[str], None]) -> Splits | None:
    """The splits in `folder`, None if they are of other settings; damaged ones are told, and None too."""
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest["fingerprint"] != identity:
            return None
        splits: Splits = {}
        for name, digest in manifest["contents"].items():
            text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
            if fingerprint(text) != digest:
                raise ValueError(f"{name}.jsonl was altered")
            splits[name] = [Example.from_json(line) for line in _lines(text)]
    except FileNotFoundError as error:
        if folder.exists():
            say(f"{error.filename} is missing; the examples are made anew")
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"{folder} is damaged ({error}); the examples are made anew")
        return None
    return splits


def _write_splits(folder: Path, identity: str, source: str, revision: str | None, splits: Splits) -> None:
    texts = {name: "".join(e.to_json() + "\n" for e in examples) for name, examples in splits.items()}
    with atomic_folder(folder) as temporary:
        for name, text in texts.items():
            atomic_write_text(temporary / f"{name}.jsonl", text)
        manifest = {
            "fingerprint": identity,
            "source": source,
            "revision": revision,
            "sizes": {name: len(examples) for name, examples in splits.items()},
            "contents": {name: fingerprint(text) for name, text in texts.items()},
        }
        atomic_write_record(temporary / "manifest.json", manifest)
