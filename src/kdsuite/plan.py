"""Settings → run specs: what a configuration asks for, each with its documented id and its fingerprint."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kdsuite.config import TEACHER, ZERO_SHOT, Settings, nearest
from kdsuite.errors import SettingsError
from kdsuite.methods.base import ANSWERS, LABELLED, STATES, Method, Point, kept_by, method, needed
from kdsuite.store.files import fingerprint
from kdsuite.tasks.example import task_of

RECORD_FORMAT = 4  # raise it when the meaning of a run changes: every earlier record is then superseded

INDIFFERENT = {"logging_steps", "checkpoint_minutes"}  # settings of a training that its result does not depend on


@dataclass(frozen=True)
class RunSpec:
    """One (method, task, student, point, seed, fraction); `teacher` and `zero-shot` are only evaluated.

    `point`: the hyper-parameters that the method's grid spans, by name. `fraction`: of the training examples.
    """

    method: str
    task: str
    student: str | None = None
    seed: int | None = None
    point: Point = field(default_factory=dict)
    fraction: float = 1.0

    @property
    def run_id(self) -> str:
        parts = [self.method, self.task, *([self.student] if self.student else [])]
        if self.recipe:
            letters = dict(self.recipe.letters) | {
                name: name for name in sorted(self.point.keys() - self.recipe.letters)
            }
            parts += [f"{letter}{self.point[name]:g}" for name, letter in letters.items() if name in self.point]
        if self.seed is not None and self.method != TEACHER:
            parts.append(f"seed{self.seed}")
        if self.fraction < 1:
            parts.append(f"f{self.fraction:g}")
        return "_".join(parts)

    @property
    def role(self) -> str:
        """Whose model it is: a student's, or the teacher's."""
        return self.student or TEACHER

    @property
    def trained(self) -> bool:
        return self.method not in (TEACHER, ZERO_SHOT)

    @property
    def recipe(self) -> Method | None:
        """What is learned and how; None for what is only evaluated."""
        return method(self.method) if self.trained else None

    @property
    def uses_teacher(self) -> bool:
        return self.recipe is not None and bool(self.recipe.needs)

    def as_dict(self) -> dict[str, Any]:
        """As it is recorded and fingerprinted: a fraction only where it is one."""
        return {name: value for name, value in asdict(self).items() if name != "fraction" or value < 1}


def expand(
    settings: Settings, tasks: Iterable[str] | None = None, methods: Iterable[str] | None = None
) -> list[RunSpec]:
    """All run specs of a configuration, in the order in which they are run.

    `tasks` and `methods` narrow it down; SettingsError when they name what the configuration has not, or when two
    runs would have the same id.
    """
    chosen_tasks = _chosen("task", tasks, list(settings.tasks))
    chosen_methods = _chosen("method", methods, settings.methods)
    points = {name: method(name).points(settings) for name in chosen_methods}
    for name in chosen_methods:
        if not points[name]:
            raise SettingsError(f"{name} has nothing to run: its grid has no point; give it one, or leave it out")
    specs = []
    for task in chosen_tasks:
        specs.append(RunSpec(TEACHER, task))
        for student in settings.students:
            specs.append(RunSpec(ZERO_SHOT, task, student))
            for fraction in sorted(settings.tasks[task].fractions, reverse=True):
                specs += [
                    RunSpec(name, task, student, seed, point, fraction)
                    for seed in settings.seeds
                    for name in chosen_methods
                    for point in points[name]
                ]
    by_id: dict[str, RunSpec] = {}
    for spec in specs:
        if (other := by_id.setdefault(spec.run_id.casefold(), spec)) != spec:
            raise SettingsError(f"two runs would have the id {spec.run_id}: {_apart(other, spec)}")
    return specs


def _apart(one: RunSpec, other: RunSpec) -> str:
    """What two runs differ in, though not in their id, and what to do about it."""
    if (one.method, one.task, one.student) == (other.method, other.task, other.student):
        points = " and at ".join(
            str({**spec.point} if one.fraction == other.fraction else spec.fraction) for spec in (one, other)
        )
        return f"those at {points}; an id tells six digits, take one of them out"
    names = " and ".join(
        f"of {spec.method} on task {spec.task!r}{f' for student {spec.student!r}' if spec.student else ''}"
        for spec in (one, other)
    )
    return f"those {names}; rename one (some file systems cannot tell 'a' from 'A')"


def _chosen(kind: str, names: Iterable[str] | None, known: Sequence[str]) -> list[str]:
    wanted = list(names) if names else list(known)
    for name in wanted:
        if name not in known:
            raise SettingsError(f"unknown {kind} {name!r}{nearest(name, known)}")
    return [name for name in known if name in wanted]


def refuse_gaps(settings: Settings, specs: Sequence[RunSpec], offers: Collection[str]) -> None:
    """SettingsError where a method, or the teacher's own evaluation, needs of it what it does not offer.

    What methods share, the cache and what is unlabeled, is that of the whole configuration, not of some runs of it.
    """
    methods = [method(name) for name in settings.methods]
    for name in dict.fromkeys(spec.task for spec in specs):
        if settings.tasks[name].transfers and not any(one.needs for one in methods):
            raise SettingsError(
                f"tasks.{name}.unlabeled is read by no method of {', '.join(settings.methods)}: only those that learn "
                "from a teacher can; add one, or take the key out"
            )
    every = kept_by(methods, settings)
    for spec in specs:
        labels = len(task_of(spec.task, settings.tasks[spec.task]).labels or ())
        if spec.recipe:
            spec.recipe.check(settings, labels)
        needs = needed([spec.recipe] if spec.recipe else [], bool(labels))
        if spec.method == TEACHER:
            needs = {LABELLED[ANSWERS] if labels else ANSWERS}
        if missing := needs - set(offers):
            others = "only a model that is loaded here has them" if STATES in missing else "take another teacher"
            if settings.models.served and STATES not in missing:
                others = "take a server that scores given tokens: vLLM, SGLang, llama.cpp"
            raise SettingsError(
                f"{spec.method} on {spec.task} needs the teacher's {' and '.join(sorted(missing))}, but this "
                f"teacher offers only {', '.join(sorted(offers)) or 'nothing'}; leave it out, or {others}"
            )
        kept = spec.recipe.kept(settings) if spec.recipe else None
        drawn = kept and kept.draws and not labels
        if kept and drawn and (kept.top_k, kept.dtype) != (every.top_k, every.dtype):
            raise SettingsError(
                f"{spec.method} from drawn tokens has top_k {kept.top_k} and dtype {kept.dtype}, but what is drawn is "
                f"kept once for all methods, with {every.top_k} and {every.dtype}; give all of them the same"
            )
        if drawn and settings.models.served:
            raise SettingsError(
                f"{spec.method} from drawn tokens needs all of the teacher's probabilities, which no server tells; set "
                "kd1.targets to topk_tail, or load the teacher here (models.teacher.name)"
            )
        if kept and kept.standardised and settings.models.served:
            raise SettingsError(
                f"{spec.method} with standardised logits needs all of the teacher's logits, which no server tells; set "
                "kd1.standardise to false, or load the teacher here (models.teacher.name)"
            )


def refuse_unspreadable(settings: Settings, specs: Sequence[RunSpec]) -> None:
    """SettingsError where a job over several devices would need what only one device can do."""
    several = f"with devices_per_job={settings.devices_per_job}"
    if settings.devices_per_job == 1:
        return
    if settings.device == "mps" or settings.dtype == "float16" or ":" in settings.device:
        raise SettingsError(
            f"device {settings.device}, dtype {settings.dtype} cannot be used {several}; set device to cuda and dtype "
            "to bfloat16, or devices_per_job to 1"
        )
    for spec in specs:
        task, one = settings.tasks[spec.task], spec.recipe
        if spec.method == TEACHER and task.teacher_training.enabled:
            raise SettingsError(
                f"the teacher of {spec.task} cannot be fine-tuned {several}: what it says is asked of it divided by "
                "heads, without adapters; fine-tune it beforehand, or set devices_per_job to 1"
            )
        if one is None:
            continue
        labelled, kept = bool(task_of(spec.task, task).labels), one.kept(settings)
        asks = one.on_policy(settings, spec.point) is not None and not labelled
        if asks or (STATES in one.reads(settings, spec.point) and not (kept and kept.states)):
            raise SettingsError(
                f"{spec.method} on {spec.task} asks the teacher while it trains, which cannot be {several}; "
                + ("leave it out" if asks else "set kd3.cache=true")
                + ", or set devices_per_job to 1"
            )


def run_fingerprint(
    settings: Settings,
    spec: RunSpec,
    sources: Mapping[str, str],
    numerics: Sequence[str],
    imported: Mapping[str, str] = {},
) -> str:
    """Identifies a run by everything that decides its result.

    `sources` are the fingerprints of what the run reads: `data`, `teacher` and, by name, the students; `numerics`
    the kind of device and the dtype that it is computed with; `imported` the hashes of files that the teacher's
    `answers` or `outputs` were imported from. Settings that the run does not use (other tasks, other methods, the
    report) are left out.
    """
    task = settings.tasks[spec.task]
    about: dict[str, Any] = {
        "format": RECORD_FORMAT,
        "spec": spec.as_dict(),
        "task": task.identity(),
        "data": sources["data"],
        "numerics": list(numerics),
    }
    if spec.trained:
        about["training"] = task.training.model_dump(exclude=INDIFFERENT)
        about["lora"] = settings.models.lora.model_dump()
    if spec.student:
        about["student"] = student_identity(settings, spec.student, sources)
    if spec.uses_teacher and "unlabeled" in sources:
        about["unlabeled"] = sources["unlabeled"]
    if spec.uses_teacher or spec.method == TEACHER:
        about["teacher"] = teacher_identity(settings, spec.task, sources)
    if spec.recipe:
        about["method"] = spec.recipe.identity(settings)
        answers = spec.recipe.lesson == "teacher"
        if answers:
            about["quality_floor"] = task.quality_floor
            about["batches"] = "gold"  # by the lengths of the gold targets; once by those of the lesson
        read_off = answers and task_of(spec.task, task).labels  # where labels are scored, answers are of the outputs
        learned = {"answers": answers, "outputs": read_off or spec.recipe.reads(settings, spec.point)}
        if taken := {what: content for what, content in imported.items() if learned.get(what)}:
            about["imported"] = taken
    return fingerprint(about)


def student_identity(settings: Settings, student: str, sources: Mapping[str, str]) -> list[Any]:
    """What makes a student the one it is: its settings and its weights and tokenizer."""
    return [settings.models.students[student].model_dump(), sources[student]]


def teacher_identity(settings: Settings, task: str, sources: Mapping[str, str]) -> dict[str, Any]:
    """What makes the teacher of a task the one it is: its weights and, if it was, its fine-tuning; of one behind a
    URL its names, what its server was found to be, and its tokenizer."""
    training, teacher = settings.tasks[task].teacher_training, settings.models.teacher
    about = teacher.model_dump(exclude=set(teacher.indifferent))
    identity: dict[str, Any] = {"model": about, "weights": sources[TEACHER]}
    if "served" in sources:
        identity["served"] = sources["served"]
    if training.enabled:
        identity["training"] = training.model_dump(exclude=INDIFFERENT)
        identity["lora"] = settings.models.lora.model_dump()
        identity["seed"] = teacher_seed(settings)
    return identity


def teacher_seed(settings: Settings) -> int:
    """The seed with which the teacher is fine-tuned."""
    return settings.seeds[0]
