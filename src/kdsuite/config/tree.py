"""One frozen, strict settings tree.

Every field says its meaning, unit and default; an unknown key is an error that names the nearest valid one.
The hub token is deliberately not part of the tree: it goes to the hub library through the environment and
nowhere else, so it cannot end up in a record, a log or a report.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.config.nearest import nearest
from kdsuite.config.report import ReportSettings
from kdsuite.errors import SettingsError
from kdsuite.methods.registry import METHODS

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
                raise ValueError(f"unknown label {label!r}{nearest(label, SST2_LABELS)}")
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
