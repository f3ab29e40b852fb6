"""One frozen, strict settings tree.

Every field says its meaning, unit and default; an unknown key is an error that names the nearest valid one.
The hub token is deliberately not part of the tree: it goes to the hub library through the environment and
nowhere else, so it cannot end up in a record, a log or a report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeVar, Union

from pydantic import Discriminator, Field, Tag, create_model, field_validator, model_validator

from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.config.nearest import nearest
from kdsuite.config.plugins import METHODS, TASKS, plugins
from kdsuite.config.report import ReportSettings
from kdsuite.config.section import Count, Place, Positive, Section, Seed, Share, Unique

TEACHER, ZERO_SHOT = ("teacher", "zero-shot")  # what is only evaluated: names that no method, task or student has

QUANTIZED_PROXY = "quantized-proxy"
GENERATED = "generated"
OFFLINE_TEACHER = "offline-teacher"
OFFLINE_STUDENT = "offline-student"

S = TypeVar("S", bound=Section)


def looks_local(name: str) -> bool:
    """Whether the name of a model or data set is a path, there or not, rather than a hub id (`owner/name`)."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


class TrainingSettings(Section):
    """How a model is trained; the same for every method, so that only target and loss differ."""

    epochs: Positive = Field(default=3.0, description="passes over the training examples; default 3")
    batch_size: Count = Field(default=16, description="examples per optimizer step; default 16")
    micro_batch_size: Count | None = Field(
        default=None, description="examples per forward pass (gradient accumulation); default: batch_size"
    )
    learning_rate: Positive = Field(default=2e-4, description="peak learning rate of AdamW; default 2e-4")
    warmup_ratio: Share = Field(default=0.1, description="share of the steps with a rising learning rate; default 0.1")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="AdamW's weight decay; default 0")
    max_grad_norm: Positive = Field(default=1.0, description="gradients are clipped to this norm; default 1")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations to save memory; default false"
    )
    logging_steps: Count = Field(default=10, description="optimizer steps between two rows of history.csv; default 10")

    checkpoint_minutes: Positive = Field(
        default=10.0, description="at most so many minutes of training are lost when it is killed; default 10"
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class TeacherTrainingSettings(TrainingSettings):
    """Fine-tuning the teacher on the task before it teaches."""

    enabled: bool = Field(default=False, description="fine-tune the teacher on the task first; default false")
    train_size: Count | None = Field(
        default=None, description="training examples the teacher sees, the students' among them; default: all there are"
    )


class TaskSettings(Section):
    """Where a task's examples come from and how many of them are used."""

    kind: str | None = Field(default=None, description="which kind of task it is; default: that of its preset")
    preset: str | None = Field(
        default=None, description="a task known by name, whose other keys are its own; default: the task's own name"
    )
    source: Place = Field(
        default=GENERATED, description=f"a hub id, a folder with the official files, or `{GENERATED}`"
    )
    revision: str | None = Field(
        default=None, description="hub revision (branch, tag or commit); default: the main branch"
    )
    train_file: Place = Field(description="training file inside a source folder")
    validation_file: Place = Field(description="file of the reported split inside a source folder")
    train_size: Count | None = Field(default=None, description="training examples; default: all")
    dev_size: Count | None = Field(
        default=None, description="selection examples, carved from train; default: 5 % of train, 2,000 at most"
    )
    validation_size: Count | None = Field(default=None, description="examples of the reported split; default: all")
    sample_seed: Seed = Field(default=0, description="seed of the sampling and of the dev split; default 0")
    max_length: Count = Field(default=512, description="longest prompt with target, in tokens; default 512")
    doc_stride: Count = Field(default=128, description="tokens by which evaluation windows overlap; default 128")
    max_new_tokens: Count = Field(default=32, description="longest generated answer, in tokens; default 32")
    quality_floor: Annotated[float, Field(ge=0, le=100)] = Field(
        description="KD2 is refused below this teacher quality (primary metric on the training set, percent)"
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    teacher_training: TeacherTrainingSettings = Field(default_factory=TeacherTrainingSettings)


OWN_ARGUMENTS = {  # of `apply_chat_template`
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages", "max_length",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens",
    "strftime_now", "tokenize", "tokenizer_kwargs", "truncation",
}  # fmt: skip


class ModelSettings(Section):
    name: Place = Field(description="hub id, save_pretrained or adapter folder, or one of the offline models")
    revision: str | None = Field(default=None, description="hub revision; default: the main branch")
    system: str | None = Field(
        default=None, description="system message put before every prompt; default: what its chat template does"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="arguments of its chat template, as {enable_thinking: false}; default: none"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _left_to_the_suite(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OWN_ARGUMENTS & arguments.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be set: the suite does")
        return arguments


class TeacherSettings(ModelSettings):
    fallback: Place | None = Field(
        default=None, description="taken when the teacher cannot be loaded (access, memory); recorded; default: none"
    )
    batch_size: Count = Field(default=16, description="examples per forward pass of the teacher; default 16")


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
    teacher: TeacherSettings
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
    seeds: Annotated[tuple[Seed, ...], Unique, Field(min_length=1)] = Field(
        default=(42, 123, 456), description="one run per seed: data order and initialisation; default [42, 123, 456]"
    )
    methods: Annotated[tuple[str, ...], Unique, Field(min_length=1)] = Field(
        default=("B0", "KD1", "KD2", "KD3"), description="methods to compare; default B0, KD1, KD2, KD3"
    )
    tasks: Annotated[dict[str, TaskSettings], Field(min_length=1)] = Field(
        description="the tasks by any name, each a section of its kind or preset"
    )
    models: ModelsSettings
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
    def _presets_by_name(cls, tasks: Any) -> Any:
        """A task that says neither kind nor preset is the preset of its name."""
        if not isinstance(tasks, Mapping):
            return tasks
        named: dict[str, Any] = {}
        for name, task in tasks.items():
            _refuse_as_name("task", str(name))
            kind, preset = (task.get("kind"), task.get("preset")) if isinstance(task, Mapping) else (None, None)
            if kind and preset and kind != preset:
                raise ValueError(f"{name} is of kind {kind!r} and of preset {preset!r}; leave one of them out")
            if isinstance(task, Mapping) and not (kind or preset):
                named[name] = {**task, "preset": name}
            elif task is not None:  # `sst2: null` takes a task out again
                named[name] = task
        return named

    @field_validator("methods")
    @classmethod
    def _are_there(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in plugins(METHODS):
                raise ValueError(f"unknown method {name!r}{nearest(name, plugins(METHODS))}")
            _refuse_as_name("method", name)  # one from another package may have any
        return names

    @property
    def students(self) -> tuple[str, ...]:
        """Students that are trained; the quantized proxy is the first of them again, measured in fewer bits."""
        named = self.models.students.items()
        return tuple(name for name, model in named if model.name != QUANTIZED_PROXY)

    @property
    def proxy(self) -> str | None:
        """The student that is the first one in 4 bits, if one is."""
        return next((name for name in self.models.students if name not in self.students), None)

    def section(self, kind: type[S]) -> S:
        """The section of a method, by its class."""
        return next(part for _, part in self if isinstance(part, kind))


def _refuse_as_name(what: str, name: str) -> None:
    """ValueError for a name that cannot be part of file names and run ids, where "--" begins what is superseded."""
    fits = re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", name, re.ASCII) and "--" not in name
    if not fits or name in (TEACHER, ZERO_SHOT, "other"):
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
    """The name of the plugin that a task's section belongs to."""
    if isinstance(task, TaskSettings):
        return task.preset or task.kind
    return (task.get("preset") or task.get("kind")) if isinstance(task, Mapping) else None
