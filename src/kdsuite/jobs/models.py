"""The models of a bench by role: `teacher`, or a student's name; how they are trained and evaluated."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kdsuite.config import OFFLINE_STUDENT, OFFLINE_TEACHER, TEACHER, ModelSettings, TeacherSettings
from kdsuite.errors import ModelError, RunError
from kdsuite.evaluate.predict import EvaluationSet, replies
from kdsuite.jobs.bench import Bench, kept
from kdsuite.models import loading
from kdsuite.models.loading import TooLarge
from kdsuite.models.source import ModelSource
from kdsuite.models.spread import sharded, split
from kdsuite.runtime.memory import BatchSize
from kdsuite.runtime.ranks import here, together
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import fingerprint
from kdsuite.store.parts import Parts
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.teacher.base import SCORED
from kdsuite.teacher.dialects import Found, Server, connect, find
from kdsuite.teacher.http import HttpTeacher, Journal

CPU = torch.device("cpu")
IMPORTED = "imported"  # instead of a server's kind, where what is cached was said elsewhere


@kept
def offline_models(bench: Bench) -> dict[str, Path]:
    """Folders of the offline models, built on first use; empty when no setting names one."""
    models = bench.settings.models
    teacher = models.served.tokenizer if models.served else models.teacher.name
    names = {teacher, models.teacher.fallback, *(model.name for model in models.students.values())}
    if not names & {OFFLINE_TEACHER, OFFLINE_STUDENT}:
        return {}
    build = import_module("kdsuite.extras.offline.models").build_offline_models
    with bench.locks.hold("offline-models"):
        teacher, student = build(bench.layout.offline, models.offline, bench.progress)
    return {OFFLINE_TEACHER: teacher, OFFLINE_STUDENT: student}


@kept
def source(bench: Bench, role: str) -> ModelSource:
    """Where the model of a role comes from; the teacher's fallback if need be; of a served one, its tokenizer."""
    teacher = bench.settings.models.teacher

    def pinned(model: ModelSettings) -> ModelSource:
        if model is teacher and (note := _fallback_note(bench).read()):
            raise TooLarge(f"{note['reason']}; to try it again, delete {_fallback_note(bench).path}")
        found = loading.source_of(model, offline_models(bench))
        return loading.pinned(found, bench.choice.device, weights_dtype(bench, role), bench.settings.devices_per_job)

    if role != TEACHER:
        return pinned(bench.settings.models.students[role])
    if not isinstance(teacher, TeacherSettings):
        prompts = teacher.model_dump(include={"system", "chat_template_kwargs"})
        read = loading.source_of(ModelSettings(name=teacher.tokenizer, **prompts), offline_models(bench))
        return replace(read, name=teacher.model)
    return loading.with_fallback(teacher, pinned, bench.progress.say)


def weights_dtype(bench: Bench, role: str) -> torch.dtype:
    """Of a role's weights; fully trained models need float32."""
    return bench.choice.dtype if bench.settings.models.lora.enabled or role == TEACHER else torch.float32


def can_fall_back(bench: Bench) -> bool:
    """Whether there is another teacher to be taken instead of this one."""
    return bench.settings.models.teacher.fallback is not None and source(bench, TEACHER).stands_in is None


def fall_back(bench: Bench, reason: str) -> None:
    """Take the fallback teacher from now on; later invocations with this teacher and device do so at once."""
    _fallback_note(bench).write(reason=reason)
    bench.forget()


def _fallback_note(bench: Bench) -> Artefact:
    """What an earlier invocation noted about this teacher on this device."""
    teacher = bench.settings.models.teacher
    assert isinstance(teacher, TeacherSettings)  # no other has a fallback
    content = loading.source_of(teacher, offline_models(bench)).fingerprint
    about = [teacher.model_dump(exclude={"batch_size"}), content, str(bench.choice.device), bench.choice.dtype_name]
    return bench.artefact(bench.layout.fallback_note, about, "the teacher is tried again")


@kept
def chat(bench: Bench, role: str) -> ChatTokenizer:
    tokens = loading.load_chat(source(bench, role))
    if role == TEACHER and bench.settings.models.served and "distributions" not in server_found(bench).offers:
        tokens.asked = {}
    return tokens


# --- a teacher behind a URL


@kept
def server_found(bench: Bench) -> Found:
    """What the teacher's server was found to be: as it is kept, else by asking it."""
    return _noted(bench) or find_server(bench)


def find_server(bench: Bench) -> Found:
    """Ask the server what it is and keep that; where it is not reached, what was kept. ModelError without either."""
    served, there = bench.settings.models.served, _noted(bench)
    assert served is not None
    try:
        _, found = find(served)
    except ModelError as error:
        if there is None:
            raise
        bench.progress.say(f"{error}; going on with what is cached of {there}")
        return there
    if there != found:
        _server_note(bench).write(**asdict(found))
    bench.forget(server_found)
    bench.progress.say(f"teacher {served.model} at {served.url} ({found}) offers {', '.join(found.offers)}")
    return found


def keep_as_imported(bench: Bench) -> None:
    """Keep that what is cached of a teacher behind a URL was said elsewhere: by what, is not known."""
    _server_note(bench).write(api=IMPORTED, version="", offers=sorted(SCORED - {"live", "rationales"}))
    bench.forget(server_found)


def _server_note(bench: Bench) -> Artefact:
    served = bench.settings.models.served
    assert served is not None
    return bench.artefact(bench.layout.server, [served.model, served.api], "the server is asked again")


def _noted(bench: Bench) -> Found | None:
    there = _server_note(bench).read()
    return Found(there["api"], there["version"], tuple(there["offers"])) if there else None


@kept
def server(bench: Bench) -> Server:
    """The connection to the teacher's server. ModelError where that is another one than it was."""
    served, known = bench.settings.models.served, server_found(bench)
    assert served is not None
    found = connect(served, None if known.api == IMPORTED else known.api)
    if (version := found.version()) != known.version or known.api == IMPORTED:
        was = "was imported" if known.api == IMPORTED else f"is of {known.version}"
        raise ModelError(
            f"the server {served.url} is {found.api} {version} now, what is cached {was}; `kdsuite cache` asks it anew"
        )
    return found


def tell_tokens(bench: Bench) -> None:
    """How much the teacher's server was asked in this invocation, if at all."""
    if asked := bench.kept.get((server.__wrapped__,)):  # pyright: ignore[reportFunctionMemberAccess]
        read, written = asked.client.spent
        bench.progress.say(f"teacher {asked.client.model}: {read:,} tokens read and {written:,} written so far")


def served_teacher(bench: Bench, task: str) -> HttpTeacher:
    """The teacher behind a URL; what it says of a task is remembered until it is kept in the cache."""
    served, max_new_tokens = bench.settings.models.served, bench.settings.tasks[task].max_new_tokens
    assert served is not None
    return HttpTeacher(
        lambda: server(bench),
        server_found(bench),
        served.concurrency,
        chat(bench, TEACHER),
        max_new_tokens=max_new_tokens,
        journal=journal(bench, task),
    )


@kept
def journal(bench: Bench, task: str) -> Journal:
    """What a teacher behind a URL has answered so far; one of other settings, or another tokenizer, has its own."""
    served = bench.settings.models.served
    assert served is not None
    about = [served.model_dump(exclude=set(served.indifferent)), source(bench, TEACHER).fingerprint]
    return Journal(bench.layout.asked(task, fingerprint(about)[:16]))


# --- what is loaded


@kept
def config(bench: Bench, role: str) -> Any:
    return loading.load_config(source(bench, role))


@kept
@together
def base(bench: Bench, role: str) -> Any:
    """A role's pretrained model; frozen, never changed. Of several processes, each has its part of it."""
    came, device, dtype = source(bench, role), bench.choice.device, weights_dtype(bench, role)
    bench.progress.say(f"loading {came.name}")
    if here().size == 1:
        return loading.load_model(came, device, dtype)
    if role == TEACHER:
        return shared(bench, role, split(came, device, dtype))
    return shared(bench, role, sharded(lambda: loading.load_model(came, CPU, dtype), device))


def shared(bench: Bench, role: str, model: Any) -> Any:
    """A model of a role that is called at all of several processes when one calls it, and what writes its prompts."""
    here().share(f"chat of {role}", chat(bench, role))
    return here().share(role, model)


@kept
def teacher_model(bench: Bench, task: str) -> Any:
    """The teacher of a task: fine-tuned if the settings say so (its run must be complete), else as it came; or one
    behind a URL."""
    if bench.settings.models.served:
        return served_teacher(bench, task)
    if not bench.settings.tasks[task].teacher_training.enabled:
        return base(bench, TEACHER)
    folder = bench.layout.model(f"{TEACHER}_{task}")
    if not folder.is_dir():
        raise RunError(f"the teacher of {task} is not fine-tuned yet; run `kdsuite cache`")
    bench.progress.say(f"loading {source(bench, TEACHER).name}, fine-tuned on {task}")
    return loading.load_trained(source(bench, TEACHER), folder, bench.choice.device, bench.choice.dtype)


@together
def let_go_of_models(bench: Bench) -> None:
    """Give back the memory of all loaded models; what needs one loads it again."""
    bench.forget(base, teacher_model)


@contextmanager
def for_training(bench: Bench, role: str, checkpointing: bool) -> Iterator[Any]:
    """A role's model ready for training: the common base with a new adapter, or a copy of its own; in shards over
    several processes, one that is loaded for it."""
    lora = bench.settings.models.lora

    def ready(common: Any) -> Any:
        model = loading.trainable(common, lora)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def load() -> Any:
        with torch.random.fork_rng(devices=[]):  # adapters begin as they would on a base that was there
            common = loading.load_model(source(bench, role), CPU, weights_dtype(bench, role))
        return ready(common)

    if here().size > 1:
        bench.forget(base)
        yield shared(bench, role, sharded(load, bench.choice.device))
        return
    common = base(bench, role)
    model = ready(common if lora.enabled else copy.deepcopy(common).float())
    try:
        yield model
    finally:
        if lora.enabled:
            model.unload()
            common.requires_grad_(False)
            common.gradient_checkpointing_disable()
            common.disable_input_require_grads()


def asked(
    bench: Bench, label: str, model: Any, chat: ChatTokenizer, data: EvaluationSet, batch_size: int, parts: Parts
) -> list[list[Any]]:
    """The replies to every example, as every stage asks for them: its progress is told, what a model says is kept in
    `parts` as it comes, and not asked again. OutOfMemory where a batch of 1 is too much."""
    unit = "examples" if data.items == len(data) else "windows"

    def attempt(size: int) -> list[list[Any]]:
        with bench.choice.precision():
            return replies(model, chat, data, size, work.advance, parts)

    with bench.progress.work(label, data.items, unit, done=len(parts.done)) as work:
        return BatchSize(batch_size).fit(attempt, bench.choice.device, bench.progress.say)
