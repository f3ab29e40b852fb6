"""One frozen, strict settings tree: YAML, then the mode's overrides, then `.env`, then `--set`.

Every field says its meaning, unit and default; an unknown key is an error that names the nearest valid one.
The hub token is deliberately not part of the tree: it goes to the hub library through the environment and
nowhere else, so it cannot end up in a record, a log or a report.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from kdsuite.distill.methods import METHODS
from kdsuite.errors import SettingsError
from kdsuite.evaluation.benchmark_settings import BenchmarkSettings
from kdsuite.report.settings import ReportSettings
from kdsuite.runtime import strict_yaml

StudentName = Literal["S1", "S2"]
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[*METHODS]

QUANTIZED_PROXY = "quantized-proxy"
GENERATED = "generated"
OFFLINE_TEACHER = "offline-teacher"
OFFLINE_STUDENT = "offline-student"
SST2_LABELS = ("negative", "positive")  # GLUE's 0 and 1

_PACKAGED = Path(__file__).parent / "configs"  # in a wheel; in a checkout they lie at its root
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"


def looks_local(name: str) -> bool:
    """Whether the name of a model or data set is a path, there or not, rather than a hub id (`owner/name`)."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


class Section(BaseModel):
    """A part of the tree: immutable, and without room for misspelt keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[
    int, Field(ge=0, le=2**32 - 1)
]  # what NumPy takes; Python, torch and their products take more
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # a hub id, or a path that may begin with ~


def _unique(values: Any) -> Any:
    if isinstance(values, list | tuple):
        repeated = sorted({str(v) for v in values if list(values).count(v) > 1})
        if repeated:
            raise ValueError(f"repeats {', '.join(repeated)}")
    return values


Unique = BeforeValidator(_unique)


class TrainingSettings(Section):
    """How a model is trained; the same for every method, so that only target and loss differ."""

    epochs: Positive = Field(default=3.0, description="passes over the training examples; default 3")
    batch_size: Count = Field(default=16, description="examples per optimizer step; default 16")
    micro_batch_size: Count | None = Field(
        default=None, description="examples per forward pass (gradient accumulation); default: batch_size"
    )
    learning_rate: Positive = Field(default=2e-4, description="peak learning rate of AdamW; default 2e-4")
    warmup_ratio: Share = Field(
        default=0.1, description="share of the steps with a rising learning rate; default 0.1"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="AdamW's weight decay; default 0"
    )
    max_grad_norm: Positive = Field(default=1.0, description="gradients are clipped to this norm; default 1")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations to save memory; default false"
    )
    logging_steps: Count = Field(
        default=10, description="optimizer steps between two rows of history.csv; default 10"
    )

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
        default=None,
        description="training examples the teacher sees, the students' among them; default: all there are",
    )


class TaskSettings(Section):
    """Where a task's examples come from and how many of them are used."""

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
        default=None,
        description="selection examples, carved from train; default: 5 % of train, 2,000 at most",
    )
    validation_size: Count | None = Field(
        default=None, description="examples of the reported split; default: all"
    )
    sample_seed: Seed = Field(default=0, description="seed of the sampling and of the dev split; default 0")
    max_length: Count = Field(default=512, description="longest prompt with target, in tokens; default 512")
    doc_stride: Count = Field(
        default=128, description="tokens by which evaluation windows overlap; default 128"
    )
    max_new_tokens: Count = Field(default=32, description="longest generated answer, in tokens; default 32")
    quality_floor: Annotated[float, Field(ge=0, le=100)] = Field(
        description="KD2 is refused below this teacher quality (primary metric on the training set, percent)"
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    teacher_training: TeacherTrainingSettings = Field(default_factory=TeacherTrainingSettings)


class Sst2Settings(TaskSettings):
    train_file: Place = Field(
        default="train.tsv", description="GLUE TSV with sentence and label; default train.tsv"
    )
    validation_file: Place = Field(
        default="dev.tsv", description="GLUE TSV of the reported split; default dev.tsv"
    )
    quality_floor: Annotated[float, Field(ge=0, le=100)] = Field(
        default=60.0, description="KD2 is refused below this teacher accuracy, percent; default 60"
    )
    labels_text: dict[str, str] = Field(
        default={},
        description="how labels are spelled in answers, as {positive: Positive}; predictions and metrics keep their "
        "names; default: as they are named",
    )

    @field_validator("labels_text")
    @classmethod
    def _spelled_apart(cls, texts: dict[str, str]) -> dict[str, str]:
        for label, text in texts.items():
            if label not in SST2_LABELS:
                raise ValueError(f"unknown label {label!r}{_nearest(label, SST2_LABELS)}")
            if not text or text != text.strip():
                raise ValueError(f"label {label!r} needs a text without blanks around it")
        spelled = [texts.get(label, label) for label in SST2_LABELS]
        if len(set(spelled)) < len(spelled):
            raise ValueError(f"two labels have the same text {spelled[0]!r}")
        return texts


class SquadSettings(TaskSettings):
    train_file: Place = Field(
        default="train-v1.1.json", description="SQuAD v1.1 JSON; default train-v1.1.json"
    )
    validation_file: Place = Field(
        default="dev-v1.1.json", description="SQuAD v1.1 JSON; default dev-v1.1.json"
    )
    quality_floor: Annotated[float, Field(ge=0, le=100)] = Field(
        default=30.0, description="KD2 is refused below this teacher F1, percent; default 30"
    )


class TasksSettings(Section):
    """The tasks, one key each; every key is a name of `tasks.registry.TASKS`."""

    sst2: Sst2Settings | None = None
    squad: SquadSettings | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.names:
            raise ValueError(f"names no task; give one or more of {', '.join(type(self).model_fields)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    def __getitem__(self, name: str) -> TaskSettings:
        section = getattr(self, name, None)
        if section is None:
            raise SettingsError(f"task {name!r} is not in the configuration (it has {', '.join(self.names)})")
        return section


OWN_ARGUMENTS = {  # of `apply_chat_template`
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages", "max_length",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens",
    "strftime_now", "tokenize", "tokenizer_kwargs", "truncation",
}  # fmt: skip


class ModelSettings(Section):
    name: Place = Field(description="hub id, save_pretrained or adapter folder, or one of the offline models")
    revision: str | None = Field(default=None, description="hub revision; default: the main branch")
    system: str | None = Field(
        default=None,
        description="system message put before every prompt; default: what its chat template does",
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
        default=None,
        description="taken when the teacher cannot be loaded (access, memory); recorded; default: none",
    )
    batch_size: Count = Field(default=16, description="examples per forward pass of the teacher; default 16")


class StudentsSettings(Section):
    S1: ModelSettings
    S2: ModelSettings | None = Field(
        default=None,
        description=f"a second student; `{QUANTIZED_PROXY}` benchmarks S1 in 4 bits; default: none",
    )


class LoraSettings(Section):
    """Low-rank adapters on all linear layers but the LM head (Hu et al. 2022, LoRA)."""

    enabled: bool = Field(default=True, description="train adapters instead of all weights; default true")
    r: Count = Field(default=16, description="rank of the update; default 16")
    alpha: Positive = Field(default=32.0, description="the update is scaled by alpha / r; default 32")
    dropout: Share = Field(default=0.05, description="dropout before the adapter; default 0.05")


class OfflineModelsSettings(Section):
    """The tiny models that are built on the spot for runs without network."""

    seed: Seed = Field(default=0, description="seed of their weights and pretraining; default 0")
    pretraining_steps: Count = Field(
        default=400, description="optimizer steps of language modelling; default 400"
    )


class ModelsSettings(Section):
    teacher: TeacherSettings
    students: StudentsSettings
    lora: LoraSettings = Field(default_factory=LoraSettings)
    offline: OfflineModelsSettings = Field(default_factory=OfflineModelsSettings)


class Kd1Settings(Section):
    """Logit distillation: α·CE + (1 − α)·T²·KL (Hinton et al. 2015, arXiv:1503.02531)."""

    temperatures: Annotated[tuple[Positive, ...], Unique, Field(min_length=1)] = Field(
        default=(2.0, 4.0), description="softmax temperatures of the grid; default [2, 4]"
    )
    alphas: Annotated[tuple[Share, ...], Unique, Field(min_length=1)] = Field(
        default=(0.3, 0.5), description="weights of the hard label in the grid; 1 is B0; default [0.3, 0.5]"
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "total_variation"] = Field(
        default="forward_kl", description="distance of the two distributions; default forward_kl"
    )
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="the teacher's share in the mixture of jsd and skew_kl; default 0.5"
    )
    cross_tokenizer: Literal["byte_map", "uld", "hybrid"] = Field(
        default="byte_map",
        description="compare tokens of equal bytes, sorted probabilities, or these for unmapped tokens only; "
        "default byte_map",
    )
    top_k: Count = Field(
        default=64, description="teacher tokens kept per position; the rest is one bucket; default 64"
    )
    dtype: Literal["float16", "float32"] = Field(
        default="float32", description="storage of the cached log-probabilities; default float32"
    )


class Kd2Settings(Section):
    """Sequence-level distillation: CE on the teacher's cleaned answer (Kim & Rush 2016, arXiv:1606.07947)."""

    filter: Literal["all", "agrees_with_gold", "confident"] = Field(
        default="all", description="which of the teacher's answers are learned; default all"
    )
    min_confidence: Share = Field(
        default=0.5,
        description="confident: least probability of the label, or per token of the answer; default 0.5",
    )


LayerPairs = Annotated[tuple[tuple[Count, Count], ...], Unique, Field(min_length=1)]


class Kd3Settings(Section):
    """Feature distillation: CE + λ · mean over layers of d(W·h_student, h_teacher)."""

    weights: Annotated[tuple[Positive, ...], Unique, Field(min_length=1)] = Field(
        default=(1.0,), description="weights λ of the feature loss; default [1]"
    )
    layers: Literal["proportional", "last"] | LayerPairs = Field(
        default="proportional",
        description="which layers are matched: proportional, last, or pairs [[student, teacher], …] from 1; "
        "default proportional",
    )
    max_layers: Count = Field(
        default=2, description="proportional: pairs of layers that are matched, the last always; default 2"
    )
    loss: Literal["cosine", "mse"] = Field(
        default="cosine",
        description="1 − cosine, or the squared error relative to the teacher; default cosine",
    )
    cache: bool = Field(
        default=True,
        description="keep the teacher's hidden states on disk; false computes them anew in every step; default true",
    )


class EvaluationSettings(Section):
    batch_size: Count = Field(default=32, description="examples per forward pass in evaluation; default 32")


class Settings(Section):
    """Everything that a configuration can say."""

    device: str = Field(
        default="auto", description="auto (MPS, CUDA, CPU), mps, cuda, cuda:1, cpu; default auto"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="dtype of the matrix products; default auto: bf16 where it is faster (CUDA, some CPUs), else fp32",
    )
    threads: Count | None = Field(default=None, description="CPU threads of a run; default: PyTorch's choice")
    seeds: Annotated[tuple[Seed, ...], Unique, Field(min_length=1)] = Field(
        default=(42, 123, 456),
        description="one run per seed: data order and initialisation; default [42, 123, 456]",
    )
    methods: Annotated[tuple[MethodName, ...], Unique, Field(min_length=1)] = Field(
        default=("B0", "KD1", "KD2", "KD3"), description="methods to compare; default B0, KD1, KD2, KD3"
    )
    tasks: TasksSettings
    models: ModelsSettings
    kd1: Kd1Settings = Field(default_factory=Kd1Settings)
    kd2: Kd2Settings = Field(default_factory=Kd2Settings)
    kd3: Kd3Settings = Field(default_factory=Kd3Settings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    benchmark: BenchmarkSettings = Field(default_factory=lambda: BenchmarkSettings())
    report: ReportSettings = Field(default_factory=lambda: ReportSettings())

    @property
    def trained_students(self) -> tuple[StudentName, ...]:
        """Students that are trained; the quantized proxy is S1 again, measured in 4 bits."""
        s2 = self.models.students.S2
        return ("S1", "S2") if s2 and s2.name != QUANTIZED_PROXY else ("S1",)

    def student(self, name: str) -> ModelSettings:
        return getattr(self.models.students, name)


class Environment(BaseSettings):
    """What `.env` or the environment may override (see .env.example)."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    hf_token: SecretStr | None = None
    teacher_primary: str | None = None
    teacher_fallback: str | None = None
    student_s1: str | None = None
    student_s2: str | None = None
    device: str | None = None
    fast_mode: bool | None = None

    def overrides(self) -> dict[str, str]:
        places = {
            "models.teacher.name": self.teacher_primary,
            "models.teacher.fallback": self.teacher_fallback,
            "models.students.S1.name": self.student_s1,
            "models.students.S2.name": self.student_s2,
            "device": self.device,
        }
        return {key: value for key, value in places.items() if value is not None}


def load(
    path: Path | None = None,
    mode: str | None = None,
    sets: tuple[str, ...] | list[str] = (),
    env_file: Path | None = Path(".env"),
) -> Settings:
    """Read a configuration (the packaged offline one by default) into the settings tree.

    `mode` chooses an entry of the file's `modes`; `sets` are `key.subkey=value` strings, values in YAML.
    Raises SettingsError, one line, for anything that is not understood.
    """
    path = path or CONFIGS / "offline.yaml"
    tree = _read_yaml(path)
    environment = _read_environment(env_file)
    modes = tree.pop("modes", {})
    tree = _merge(tree, _mode_overrides(modes, mode, environment.fast_mode, path))
    for key, value in environment.overrides().items():
        _assign(tree, key, value)
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item!r}: write key=value, e.g. --set tasks.sst2.train_size=100")
        _assign(tree, key.strip(), _yaml_value(item, text))
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(f"{path.name}: {_first_problem(error)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = strict_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"no configuration at {path}; the packaged ones are {_packaged()}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: a configuration is a mapping of keys to values")
    return tree


def _packaged() -> str:
    return ", ".join(sorted(f"configs/{p.name}" for p in CONFIGS.glob("*.yaml")))


def _read_environment(env_file: Path | None) -> Environment:
    try:
        environment = Environment(_env_file=env_file)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise SettingsError(
            f"{env_file or 'environment'}: {_first_problem(error, show_value=False)}"
        ) from None
    if environment.hf_token and not os.environ.get("HF_TOKEN"):
        os.environ["HF_TOKEN"] = environment.hf_token.get_secret_value()
    return environment


def _mode_overrides(modes: Any, mode: str | None, fast: bool | None, path: Path) -> dict[str, Any]:
    if not modes:
        if mode:
            raise SettingsError(f"{path.name} has no modes, but --mode {mode} was asked for")
        return {}
    if mode is None:
        mode = str(next(iter(modes)) if fast is None else "fast" if fast else "full")
    if mode not in modes:
        raise SettingsError(f"{path.name} has no mode {mode!r}{_nearest(mode, modes)}")
    return modes[mode] or {}


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


def _yaml_value(item: str, text: str) -> Any:
    try:
        return strict_yaml.load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", error)
        raise SettingsError(f"--set {item!r}: the value is not valid YAML ({problem})") from None


def _first_problem(error: ValidationError, show_value: bool = True) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_nearest(location[-1], _keys_at(location[:-1]), location[:-1])}"
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    value = f" (got {problem['input']!r})" if show_value and not isinstance(problem["input"], dict) else ""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{where + ': ' if where else ''}{message}{value}{more}"


def _keys_at(location: list[str]) -> list[str]:
    """The valid keys of the section at a place in the tree."""
    section: Any = Settings
    for part in location:
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)


def _nearest(name: str, valid: Any, location: list[str] | None = None) -> str:
    names = [str(v) for v in valid]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    prefix = ".".join(location or [])
    if near:
        return f"; did you mean {f'{prefix}.{near[0]}' if prefix else near[0]!r}?"
    return f"; valid are {', '.join(names)}"


def nearest(name: str, valid: Any) -> str:
    """`; did you mean 'x'?` or the list of what is valid: the end of an error line."""
    return _nearest(name, valid)


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some keys (`models.teacher.batch_size`) set to other values."""
    tree = settings.model_dump()
    for key, value in changes.items():
        _assign(tree, key, value)
    return Settings.model_validate(tree)
