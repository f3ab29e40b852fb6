"""Every model is tried before any work, so that what cannot work is said in seconds and not after an hour."""

import math
from dataclasses import replace

import torch
import transformers

from kdsuite.config import TEACHER
from kdsuite.errors import ModelError, RunError
from kdsuite.evaluate.predict import label_scores
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.models import (
    base,
    can_fall_back,
    chat,
    config,
    fall_back,
    for_training,
    let_go_of_models,
    served_teacher,
    server,
    source,
)
from kdsuite.methods.base import DISTRIBUTIONS, STATES, kept_by, method
from kdsuite.models import check
from kdsuite.models.forward import Traits, traits_of
from kdsuite.runtime.memory import OUT_OF_MEMORY, is_out_of_memory
from kdsuite.runtime.ranks import together
from kdsuite.tasks.encoding import encode, lay_out
from kdsuite.tasks.example import task_of
from kdsuite.tasks.splits import make_splits
from kdsuite.teacher.http import Journal
from kdsuite.teacher.local import OutputSettings

ASKED = 16  # examples by which it is told how much probability a prompt leaves to the label words


def try_models(bench: Bench) -> None:
    """Try the students, then the teacher, unless that was done with these very models and settings.

    ModelError for the first that cannot be used. Where memory runs out, the teacher's fallback is taken; runs of a
    student that is too large say so themselves, and the others go on.
    """
    if bench.settings.models.served:
        _try_served(bench)
    for role in tried_here(bench):
        try:
            _try_once(bench, role)
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
            if role == TEACHER and can_fall_back(bench):
                fall_back(bench, str(error))
                _try_once(bench, role)
            else:
                bench.progress.say(f"{role}: out of memory on {bench.choice.device} in a trial on a few tokens")
        if role != TEACHER:
            let_go_of_models(bench)


def tried_here(bench: Bench) -> list[str]:
    """The roles whose models are loaded here: the students, and the teacher unless it is behind a URL."""
    return [*bench.settings.students, *([] if bench.settings.models.served else [TEACHER])]


def _try_served(bench: Bench) -> None:
    """Let a teacher behind a URL read a few tokens, if it is reached: a tokenizer that is not its own, and more
    log-probabilities than it tells, are told before anything is asked. ModelError says which."""
    try:
        server(bench)
    except ModelError:
        return  # what is cached may be enough; who asks is told
    tokens, task = chat(bench, TEACHER), next(iter(bench.settings.tasks))
    [prompt] = tokens.prompt_ids([[{"role": "user", "content": "Is the sky blue?"}]])
    asked = lay_out("trial", prompt, {"": tokens.answer("Yes, it is.")}, "")
    keep = OutputSettings(kept_by([method(name) for name in bench.settings.methods], bench.settings).top_k)
    teacher = replace(served_teacher(bench, task), keep=keep, journal=Journal())
    try:
        if DISTRIBUTIONS in teacher.offers:
            teacher.score([asked])
        teacher.generate([asked.prompt], 1)
    except RunError as error:
        raise ModelError(f"teacher {source(bench, TEACHER).name}: {error}") from None


def _try_once(bench: Bench, role: str) -> None:
    """A trial is known by the model, where and how it is computed, and what is asked of it."""
    settings = bench.settings
    about = [
        source(bench, role).fingerprint,
        [str(bench.choice.device), bench.choice.dtype_name, torch.__version__, transformers.__version__],
        [settings.models.lora.model_dump(), is_trained(bench, role), bool(_wanting_layers(bench))],
    ]
    trial = bench.artefact(bench.layout.trial(role), about, "the model is tried again")
    refuse_unless_fits(bench, role)
    with bench.locks.hold(f"trial-{role}"):
        if trial.read() is None:
            bench.progress.say(f"{role}: trying {source(bench, role).name}")
            try_model(bench, role)
            trial.write()


def is_trained(bench: Bench, role: str) -> bool:
    """Whether any run trains this model."""
    return role != TEACHER or any(task.teacher_training.enabled for task in bench.settings.tasks.values())


def _wanting_layers(bench: Bench) -> list[str]:
    """The methods that read hidden states layer by layer."""
    return [name for name in bench.settings.methods if STATES in method(name).needs]


def refuse_unless_fits(bench: Bench, role: str) -> None:
    """ModelError where texts of the configured lengths, or this tokenizer's ids, are too much for a model."""
    lengths = {f"tasks.{name}.max_length": task.max_length for name, task in bench.settings.tasks.items()}
    check.refuse_unless_fits(config(bench, role), chat(bench, role), source(bench, role).name, lengths)


def try_model(bench: Bench, role: str) -> Traits:
    """Load a model, which tries it out, and train a step on a few tokens if it will be trained."""
    name, traits = source(bench, role).name, traits_of(base(bench, role))
    if (wanting := _wanting_layers(bench)) and not traits.layers:
        raise ModelError(
            f"the hidden states of {name!r} cannot be read layer by layer, which {', '.join(wanting)} needs; "
            "leave it out of `methods`, or take another model"
        )
    if is_trained(bench, role):
        _try_training(bench, role)
    return traits


@together
def _try_training(bench: Bench, role: str) -> None:
    with for_training(bench, role, checkpointing=False) as model:
        check.try_training(model, source(bench, role).name)


def label_mass(bench: Bench, role: str, name: str) -> tuple[float, str]:
    """How much probability a prompt leaves to the label words, as spelled, on average; and what the model would
    rather begin with on most prompts."""
    kind, tokens = task_of(name, bench.settings.tasks[name]), chat(bench, role)
    kind.shots = make_splits(kind)["shots"] if kind.settings.examples else ()
    encoded = encode(kind, tokens, (kind.load("validation") or kind.load("train"))[:ASKED])
    model = base(bench, role)
    scores = label_scores(model, tokens, encoded, len(kind.labels or ()), 1)
    first: list[int] = []
    with torch.inference_mode():
        for example in encoded:
            prompt = example.input_ids[: example.segments.count(0)]
            logits = model(input_ids=torch.tensor([prompt], device=model.device), logits_to_keep=1).logits
            first.append(int(logits[0, -1, : len(tokens.token_bytes)].argmax()))
    favourite = max(set(first), key=first.count)
    return math.fsum(scores.exp().sum(-1).tolist()) / len(encoded), tokens.tokenizer.decode([favourite])
