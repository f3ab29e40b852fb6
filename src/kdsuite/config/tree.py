"""One frozen, strict settings tree.

Every field says its meaning, unit and default; an unknown key is an error that names the nearest valid one.
The hub token is deliberately not part of the tree: it goes to the hub library through the environment and
nowhere else, so it cannot end up in a record, a log or a report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.config.nearest import nearest
from kdsuite.config.plugins import METHODS, TASKS, base_method, plugins
from kdsuite.config.report import ReportSettings
from kdsuite.config.section import Count, Place, Positive, Section, Seed, Share, Unique
from kdsuite.config.tasks import TaskSettings, completed

TEACHER, ZERO_SHOT = ("teacher", "zero-shot")  # what is only evaluated
TAKEN = (TEACHER, ZERO_SHOT, "other")  # names that no method, task or student has

QUANTIZED_PROXY = "quantized-proxy"
OFFLINE_TEACHER = "offline-teacher"
OFFLINE_STUDENT = "offline-student"

S = TypeVar("S", bound=Section)


def looks_local(name: str) -> bool:
    """Whether the name of a model or data set is a path, there or not, rather than a hub id (`owner/name`)."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


OWN_ARGUMENTS = {  # of `apply_chat_template`
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages", "max_length",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens",
    "strftime_now", "tokenize", "tokenizer_kwargs", "truncation",
}  # fmt: skip


def _left_to_the_suite(arguments: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(OWN_ARGUMENTS & arguments.keys()):
        raise ValueError(f"{', '.join(taken)} cannot be set: the suite does")
    return arguments


System = Annotated[
    str | None, Field(description="system message put before every prompt; default: what its chat template does")
]
TemplateArguments = Annotated[
    dict[str, Any],
    AfterValidator(_left_to_the_suite),
    Field(description="arguments of its chat template, as {enable_thinking: false}; default: none"),
]


class ModelSettings(Section):
    name: Place = Field(description="hub id, save_pretrained or adapter folder, or one of the offline models")
    revision: str | None = Field(default=None, description="hub revision; default: the main branch")
    system: System = None
    chat_template_kwargs: TemplateArguments = {}


class TeacherSettings(ModelSettings):
    """A teacher that is loaded here."""

    indifferent: ClassVar = frozenset({"batch_size"})  # to what it says
    fallback: Place | None = Field(
        default=None, description="taken when the teacher cannot be loaded (access, memory); recorded; default: none"
    )
    batch_size: Count = Field(default=16, description="examples per forward pass of the teacher; default 16")


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # ValueError, if it is none
        raise ValueError("give the address of a server, as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("an address holds no key; put the key into an environment variable and name that by key_env")
    return url.rstrip("/").removesuffix("/v1")


class ServedTeacherSettings(Section):
    """A teacher behind a URL (docs/teachers.md). Of all its files only the tokenizer's are read here."""

    indifferent: ClassVar = frozenset({"url", "key_env", "price_per_million_tokens", "concurrency"})
    fallback: ClassVar = None
    revision: ClassVar = None

    url: Annotated[str, AfterValidator(_address)] = Field(description="address of the server, as http://host:8000/v1")
    model: str = Field(description="what the server calls the model")
    tokenizer: Place = Field(description="the model's tokenizer: hub id or folder")
    api: Literal["auto", "openai", "vllm", "sglang", "llamacpp", "ollama"] = Field(
        default="auto", description="how the server is spoken to; default auto: what it says it is"
    )
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")] | None = Field(
        default=None, description="environment variable that holds the key, which is written nowhere; default: no key"
    )
    price_per_million_tokens: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="price of a million tokens, read or written, in any currency; default: not told"
    )
    concurrency: Count = Field(default=8, description="requests at once; default 8")
    system: System = None
    chat_template_kwargs: TemplateArguments = {}

    @property
    def name(self) -> str:
        return self.model

    @property
    def batch_size(self) -> int:
        """Examples that are asked together: enough that the last of them hardly wait alone."""
        return 16 * self.concurrency


def _place_of(teacher: Any) -> str:
    served = "url" in teacher if isinstance(teacher, Mapping) else isinstance(teacher, ServedTeacherSettings)
    return "served" if served else "local"


class LoraSettings(Section):
    """Low-rank adapters on all linear layers but the LM head (Hu et al. 2022, LoRA)."""

    enabled: bool = Field(default=True, description="train adapters instead of all weights; default true")
    r: Count = Field(default=16, description="rank of the update; default 16")
    alpha: Positive = Field(default=32.0, description="the update is scaled by alpha / r; default 32")
    dropout: Share = Field(default=0.05, description="dropout before the adapter; default 0.05")


class OfflineModelsSettings(Section):
    """The tiny models that are built on the spot for runs without network."""

    seed: Seed = Field(default=0, description="seed of their weights and pretraining; default 0")
    pretraining_steps: Count = Field(default=400, description="optimizer steps of language modelling; default 400")


class ModelsSettings(Section):
    teacher: Annotated[
        Annotated[TeacherSettings, Tag("local")] | Annotated[ServedTeacherSettings, Tag("served")],
        Discriminator(_place_of),
    ]
    students: Annotated[dict[str, ModelSettings], Field(min_length=1)] = Field(
        description=f"the students by any name; `{QUANTIZED_PROXY}` is the first one again, benchmarked in 4 bits"
    )
    lora: LoraSettings = Field(default_factory=LoraSettings)
    offline: OfflineModelsSettings = Field(default_factory=OfflineModelsSettings)

    @field_validator("students", mode="before")
    @classmethod
    def _named(cls, students: Any) -> Any:
        """Without those that are null: an override takes a student out with it."""
        return {k: v for k, v in students.items() if v is not None} if isinstance(students, Mapping) else students

    @field_validator("students")
    @classmethod
    def _some_trained(cls, students: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name in students:
            _refuse_as_name("student", name)
        proxies = [name for name, model in students.items() if model.name == QUANTIZED_PROXY]
        if len(proxies) > 1 or len(proxies) == len(students):
            raise ValueError(f"one student must be trained, and at most one be {QUANTIZED_PROXY!r}")
        if len({name.casefold() for name in students}) < len(students):
            raise ValueError("two students have names that some file systems cannot tell apart; rename one")
        return students

    @property
    def served(self) -> ServedTeacherSettings | None:
        """The teacher, if it is one behind a URL."""
        return self.teacher if isinstance(self.teacher, ServedTeacherSettings) else None


class EvaluationSettings(Section):
    batch_size: Count = Field(default=32, description="examples per forward pass in evaluation; default 32")


class Settings(Section):
    """Everything that a configuration can say, but for the sections of methods and kinds of task (see `whole_tree`)."""

    device: str = Field(default="auto", description="auto (MPS, CUDA, CPU), mps, cuda, cuda:1, cpu; default auto")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="dtype of the matrix products; default auto: bf16 where it is faster (CUDA, some CPUs), else fp32",
    )
    threads: Count | None = Field(default=None, description="CPU threads of a run; default: PyTorch's choice")
    devices_per_job: Count = Field(
        default=1, description="GPUs that a run, or the teacher of a task, is spread over (docs/scale.md); default 1"
    )
    seeds: Annotated[tuple[Seed, ...], Unique, Field(min_length=1)] = Field(
        default=(42, 123, 456), description="one run per seed: data order and initialisation; default [42, 123, 456]"
    )
    methods: Annotated[tuple[str, ...], Unique, Field(min_length=1)] = Field(
        default=("B0", "KD1", "KD2", "KD3"), description="methods to compare; default B0, KD1, KD2, KD3"
    )
    variants: dict[str, dict[str, dict[str, Any]]] = Field(
        default={},
        description="methods under other settings, to be compared with themselves, as "
        "{KD1-uld: {kd1: {cross_tokenizer: uld}}}, named METHOD-ANYTHING; default none",
    )
    tasks: Annotated[dict[str, TaskSettings], Field(min_length=1)] = Field(
        description="the tasks by any name, each a section of its kind or preset"
    )
    models: ModelsSettings
    tracking: Annotated[tuple[Literal["tensorboard", "trackio", "mlflow", "wandb"], ...], Unique] = Field(
        default=(), description="trackers that show each run as it goes, offline (docs/tracking.md); default none"
    )
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    benchmark: BenchmarkSettings = Field(default_factory=BenchmarkSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """The whole tree from plain values, the sections of all that is installed included."""
        if cls is Settings:
            return whole_tree().model_validate(obj, **options)  # pyright: ignore[reportReturnType]
        return super().model_validate(obj, **options)

    def __reduce__(self) -> Any:
        return Settings.model_validate, (self.model_dump(),)

    @field_validator("tasks", mode="before")
    @classmethod
    def _completed(cls, tasks: Any) -> Any:
        """Each with what its preset or file says; `sst2: null` takes a task out again."""
        if not isinstance(tasks, Mapping):
            return tasks
        for name in tasks:
            _refuse_as_name("task", str(name))
        return {
            name: completed(str(name), task) if isinstance(task, Mapping) else task
            for name, task in tasks.items()
            if task is not None
        }

    @field_validator("methods")
    @classmethod
    def _are_there(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if base_method(name) is None:
                raise ValueError(f"unknown method {name!r}{nearest(name, plugins(METHODS))}")
            _refuse_as_name("method", name)  # one from another package may have any
        return names

    @model_validator(mode="after")
    def _variants_are_of_methods(self) -> Self:
        """Each variant's settings are what its method understands; each method that is a variant is one of these."""
        for name, values in self.variants.items():
            _refuse_as_name("method", name)
            base = base_method(name)
            if base is None or base == name:
                known = ", ".join(plugins(METHODS))
                raise ValueError(f"variants.{name}: a variant is named after its method, METHOD-ANYTHING, of {known}")
            sections = plugins(METHODS)[base].sections
            if wrong := values.keys() - sections.keys():
                has = f"has only {', '.join(sections)}" if sections else "has no settings, so that it has no variants"
                raise ValueError(f"variants.{name}.{min(wrong)}: {base} {has}")
            if not values:
                raise ValueError(f"variants.{name} sets nothing: it would be {base} again")
            self.under(values, f"variants.{name}.")
        for name in self.methods:
            if name not in plugins(METHODS) and name not in self.variants:
                raise ValueError(
                    f"methods: {name!r} is neither installed nor under `variants`"
                    f"{nearest(name, [*plugins(METHODS), *self.variants])}"
                )
        return self

    @model_validator(mode="after")
    def _as_it_is_served(self) -> Self:
        for name, task in self.tasks.items():
            if self.models.served and task.teacher_training.enabled:
                raise ValueError(
                    f"tasks.{name}.teacher_training.enabled: a teacher behind a URL is not fine-tuned here; set it to "
                    "false, or give models.teacher.name, a folder or hub id"
                )
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Whose model it is: the teacher's, or that of a student by name."""
        return (TEACHER, *self.students)

    @property
    def students(self) -> tuple[str, ...]:
        """Students that are trained; the quantized proxy is the first of them again, measured in fewer bits."""
        named = self.models.students.items()
        return tuple(name for name, model in named if model.name != QUANTIZED_PROXY)

    @property
    def proxy(self) -> str | None:
        """The student that is the first one in 4 bits, if one is."""
        return next((name for name in self.models.students if name not in self.students), None)

    def under(self, values: Mapping[str, Mapping[str, Any]], place: str = "") -> Self:
        """These settings with other values in sections of methods. ValueError, of its place, for a wrong one."""
        changed = {}
        for key, of_section in values.items():
            own: Section = getattr(self, key)
            try:
                changed[key] = type(own).model_validate({**own.model_dump(), **of_section})
            except ValidationError as error:
                found = error.errors()[0]
                about = found.get("ctx", {})
                where = ".".join([place + key, *(str(part) for part in found["loc"])])
                if found["type"] == "unknown_key":
                    near = nearest(about["key"], about["valid"])
                    raise ValueError(f"unknown key '{where}.{about['key']}'{near}") from None
                raise ValueError(f"{where}: {found['msg'].removeprefix('Value error, ')}") from None
        return self.model_copy(update=changed)

    def section(self, kind: type[S]) -> S:
        """The section of a method, by its class."""
        return next(part for _, part in self if isinstance(part, kind))


def name_from(text: str) -> str:
    """A name for a task of what its file is called; empty where nothing of that can be one."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", text)[:60].strip("-")
    return f"my-{name}" if name in TAKEN else name


def _refuse_as_name(what: str, name: str) -> None:
    """ValueError for a name that cannot be part of file names and run ids, where "--" begins what is superseded."""
    fits = re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", name, re.ASCII) and "--" not in name
    if not fits or name in TAKEN:
        raise ValueError(
            f"{name!r} cannot be the name of a {what}; take up to 64 letters, digits, '.', '-', '+' and '_', no two "
            f"'-' in a row, not {TEACHER!r}"
        )


@cache
def whole_tree() -> type[Settings]:
    """The tree with the sections of every installed method, and of every installed kind of task for `tasks`."""
    kinds = plugins(TASKS)
    sections = {key: section for method in plugins(METHODS).values() for key, section in method.sections.items()}
    tagged = tuple(Annotated[task.Settings, Tag(name)] for name, task in kinds.items())
    one = Annotated[Union[tagged], Discriminator(_kind_of)]  # noqa: UP007
    fields: dict[str, Any] = {key: (kind, Field(default_factory=kind)) for key, kind in sorted(sections.items())}
    fields["tasks"] = (dict[str, one], Settings.model_fields["tasks"])
    return create_model("Settings", __base__=Settings, __doc__=Settings.__doc__, **fields)


def _kind_of(task: Any) -> Any:
    """The name of the plugin that a task's section belongs to; of what is none, as it was said."""
    if isinstance(task, TaskSettings):
        return task.kind
    return task.get("kind") if isinstance(task, Mapping) else None


def task_section(name: str, values: Mapping[str, Any] | None = None, /, **others: Any) -> TaskSettings:
    """One task's section from plain values. pydantic's ValidationError, or ValueError, for what is not understood."""
    _refuse_as_name("task", name)
    one: TypeAdapter[Any] = TypeAdapter(whole_tree().model_fields["tasks"].annotation or object)
    return one.validate_python({name: completed(name, {**(values or {}), **others})})[name]
