"""A task's section: where its examples come from, how they are asked and how many are used.

What a section leaves out comes from its preset or its task file, then from its kind. Presets are task files that come
with the package; a person's own lie beside their data, and places in them are relative to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, field_validator, model_validator

from kdsuite.config import strict_yaml
from kdsuite.config.nearest import nearest
from kdsuite.config.section import Count, Place, Positive, Section, Seed, Share, Unique

GENERATED = "generated"
PRESETS = Path(__file__).parent / "presets"
LANGUAGE = ImmutableSandboxedEnvironment(undefined=StrictUndefined)  # of prompts
MESSAGES = "messages"  # the input that is a whole conversation
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")  # of files with rows
EARLIER = ("preset", "source", "revision", "train_size", "dev_size", "validation_size", "sample_seed", "max_length",
           "doc_stride", "max_new_tokens", "labels_text")  # fmt: skip
NO_FACT = {"title", "licence", "citation", "hub_id", "sizes", "quality_floor", "training", "teacher_training"}
NO_FACT |= {"unlabeled", "transfer"}  # which B0 does not read; by their content for those that do
NO_FACT |= {"fractions"}  # each is a run of its own


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


class SplitPlaces(Section):
    """Where the splits are: files (or a pattern, `part-*.parquet`) in the source's folder, or splits on the hub."""

    train: str | None = Field(
        default=None, description="training data; default: `train`, or the source itself if it is a file"
    )
    validation: str | None = Field(
        default=None,
        description="the reported split; default: `validation`, `dev` or `test`, or else carved out of train by group",
    )


class Columns(Section):
    """Which column holds what."""

    input: str | tuple[str, ...] | dict[str, str] | None = Field(
        default=None,
        description="what the prompt is made of: a column, several, or `{name in the prompt: column}`; "
        "default: what the prompt names, or `text` (classification), `question` (short_answer), `prompt` (generation)",
    )
    target: str | None = Field(
        default=None,
        description="what is to be learned; default: `label`, `answers` or `answer`, `completion` or `answer`",
    )
    references: str | None = Field(
        default=None, description="what is scored against, a text or a list; default: `references`, or else the target"
    )
    context: str | None = Field(
        default=None, description="the passage a question is about, read in windows if it is long; default: `context`"
    )
    id: str | None = Field(default=None, description="what identifies an example; default: `id`, or else its place")
    group: str | None = Field(
        default=None, description="examples that hang together, as of a customer; default: `group`, or equal inputs"
    )
    origin: str | None = Field(
        default=None, description="a larger whole of which dev shares none with training; default: none"
    )
    messages: str | None = Field(
        default=None, description="a whole conversation that ends with the answer (generation); default: `messages`"
    )

    @property
    def inputs(self) -> dict[str, str] | None:
        """The name in the prompt and the column of each input."""
        if isinstance(self.input, str):
            return {self.input: self.input}
        return self.input if isinstance(self.input, dict | None) else {name: name for name in self.input}


class SplitSize(Section):
    """How large a split is that is not here, so that a plan needs no network."""

    examples: Count = Field(description="examples")
    prompt: Positive = Field(description="characters of a prompt, on average")
    target: Positive = Field(description="characters of a target, on average")
    longest: Count = Field(description="characters of the longest prompt")


class TaskSizes(Section):
    train: SplitSize
    validation: SplitSize


class TaskSettings(Section):
    """Where a task's examples come from, how they are asked, and how many of them are used.

    A task may also stand in a file of its own, `file: task.yaml`, where places are relative to it, and be overridden
    key by key; a long prompt in another, `prompt_file: prompt.txt`.
    """

    offered: ClassVar[frozenset[str]] = frozenset({"inputs"})  # to a prompt, beside the inputs by their names

    kind: str | None = Field(
        default=None,
        description="which kind of task it is; default: that of its preset or file, or the task's own name",
    )
    preset: str | None = Field(
        default=None, description="a task known by name that fills in what is left out; default: the task's own name"
    )
    title: str | None = Field(default=None, description="what tables and figures call it; default: its name")
    source: Place = Field(
        default=GENERATED,
        description=f"a file, a pattern of files, a folder, a hub id, or `{GENERATED}` for a preset's own corpus",
    )
    revision: str | None = Field(
        default=None, description="hub revision (branch, tag or commit); default: the main branch"
    )
    subset: str | None = Field(default=None, description="subset (configuration) of a hub data set; default: its own")
    corpus: str | None = Field(default=None, description=f"which corpus `{GENERATED}` is; default: none")
    splits: SplitPlaces = Field(default_factory=SplitPlaces, description="where training data and reported split are")
    columns: Columns = Field(default_factory=Columns, description="which column holds what; default: as its kind says")
    prompt: str | None = Field(
        default=None, description="Jinja template of the question, over the inputs by name; default: that of its kind"
    )
    system: str | None = Field(default=None, description="system message of the task; default: none")
    examples: Annotated[int, Field(ge=0)] = Field(
        default=0, description="solved examples shown before every question, drawn from train by seed; default 0"
    )
    unlabeled: Place | None = Field(
        default=None, description="a file, pattern or hub split of inputs without targets; default: none"
    )
    transfer: Literal["labelled", "labelled+unlabeled"] = Field(
        default="labelled+unlabeled",
        description="what methods that learn from the teacher learn on; default labelled+unlabeled",
    )
    train_size: Count | None = Field(default=None, description="training examples; default: all")
    fractions: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Unique] = Field(
        default=(1.0,),
        description="shares of the training examples on which every method is trained, nested, 1 among them; default "
        "only the whole",
    )
    dev_size: Count | None = Field(
        default=None, description="selection examples, carved from train; default: 5 % of train, 2,000 at most"
    )
    validation_size: Count | None = Field(
        default=None,
        description="examples of the reported split; default: all, or 20 % of train, 2,000 at most, where it is carved",
    )
    sample_seed: Seed = Field(default=0, description="seed of the sampling and of the dev split; default 0")
    fragments: bool = Field(
        default=False,
        description="training examples are parts of each other's texts, reported ones are whole; default false",
    )
    max_length: Count = Field(default=512, description="longest prompt with target, in tokens; default 512")
    doc_stride: Count = Field(default=128, description="tokens by which evaluation windows overlap; default 128")
    max_new_tokens: Count = Field(default=32, description="longest generated answer, in tokens; default 32")
    quality_floor: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="methods that learn the teacher's answers are refused below this quality of them (primary metric "
        "on the training set, percent); default 0, or the preset's",
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    teacher_training: TeacherTrainingSettings = Field(default_factory=TeacherTrainingSettings)
    licence: str | None = Field(default=None, description="licence of the data, with their name; default: none")
    citation: str | None = Field(default=None, description="how a page names the data; default: none")
    hub_id: str | None = Field(default=None, description="where the official data are; default: none")
    sizes: TaskSizes | None = Field(
        default=None, description="sizes of data that are not here, for plan; default: not known"
    )

    @field_validator("prompt")
    @classmethod
    def _can_be_read(cls, prompt: str | None) -> str | None:
        try:
            LANGUAGE.parse(prompt or "")
        except TemplateSyntaxError as error:
            raise ValueError(f"is no Jinja template: line {error.lineno}: {error.message}") from None
        return prompt

    @model_validator(mode="after")
    def _names_its_inputs(self) -> Self:
        """A prompt that asks for what is not there, or for nothing, is told before any data are read."""
        if self.columns.context and "context" not in self.offered:
            raise ValueError("columns.context: only short_answer has a passage; name the column in columns.input")
        if self.prompt is None or self.columns.messages:
            return self
        named = meta.find_undeclared_variables(LANGUAGE.parse(self.prompt))
        inputs = self.columns.inputs or {}
        there = [*inputs, *sorted(self.offered)]
        if inputs and (wrong := sorted(named - set(there))):
            raise ValueError(f"prompt: no input {wrong[0]!r}{nearest(wrong[0], there)}; columns.input names them")
        if not named - (self.offered & {"labels"}):
            raise ValueError("prompt: names no input, so that every question would be the same; write {{ name }}")
        if "inputs" in named & inputs.keys():
            raise ValueError("prompt: `inputs` are all of them by name; give that one another, as {text: inputs}")
        return self

    @model_validator(mode="after")
    def _fractions_are_of_what_is_labelled(self) -> Self:
        if 1 not in self.fractions:
            raise ValueError("fractions: 1 is not among them; add it, for tables and tests are of the whole")
        if len(self.fractions) > 1 and self.transfers:
            raise ValueError(
                "fractions: with `unlabeled`, at every fraction methods that learn from the teacher would have inputs "
                "that B0 has not; set `transfer: labelled`, or take one of the two keys out"
            )
        return self

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs by their names in the prompt, with the column of each: as `columns` says, else what the prompt
        names; none where neither says it."""
        named = meta.find_undeclared_variables(LANGUAGE.parse(self.prompt or "")) - self.offered
        return self.columns.inputs or {name: name for name in sorted(named)}

    def own(self, section: str, key: str) -> str | None:
        """What a person says under `splits` or `columns`; None where it is what the preset says."""
        said = getattr(getattr(self, section), key)
        usual = preset_values(self.preset).get(section, {}) if self.preset else {}
        return None if said == usual.get(key) else said

    @property
    def transfers(self) -> bool:
        """Whether methods that learn from the teacher learn on what has no target, too."""
        return self.unlabeled is not None and self.transfer != "labelled"

    def identity(self) -> dict[str, Any]:
        """What of it decides a result, beside training.

        The first keys are those of earlier editions, whose results are still valid; of the others only those that
        are not as the preset or the kind has them.
        """
        given = self.model_dump(exclude=NO_FACT)
        if self.preset:
            usual = type(self).model_validate(preset_values(self.preset)).model_dump()
        else:
            usual = {key: field.default for key, field in type(self).model_fields.items()}
            usual["columns"] = Columns().model_dump()
        places = {"train_file": self.splits.train, "validation_file": self.splits.validation}
        known = {"kind": None if self.preset else self.kind, **places, **{k: given[k] for k in EARLIER if k in given}}
        others = {k: v for k, v in given.items() if k not in (*EARLIER, "kind", "splits") and v != usual[k]}
        if not self.columns.inputs and (read := sorted({"context", "labels"} & self.inputs.keys())):
            others["read"] = read  # columns that the prompt names; earlier editions left them empty
        return known | others

    def scoring(self) -> dict[str, Any]:
        """What of its identity decides how an answer is scored, JSON-ready; nothing where it is as its kind has it."""
        return {}


@cache
def preset_values(name: str) -> dict[str, Any]:
    """What a preset says."""
    return _task_file(PRESETS / f"{name}.yaml")


@cache
def presets() -> tuple[str, ...]:
    """The tasks that are known by name."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def completed(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A task's section with what its preset or file says, and the text of its `prompt_file`.

    ValueError for what cannot be read, a preset that there is not, or one of which the task says another kind.
    """
    task = _with_prompt(name, given)
    if place := task.pop("file", None):
        path = Path(str(place)).expanduser()
        task = merged(_with_prompt(str(path), _in_folder(_task_file(path), path.parent)), task)
    if not (task.get("kind") or task.get("preset")):
        task["preset" if name in presets() else "kind"] = name
    if preset := task.get("preset"):
        if preset not in presets():
            raise ValueError(f"{name} is of preset {preset!r}, which there is not{nearest(str(preset), presets())}")
        values = preset_values(preset)
        if (kind := task.get("kind")) not in (None, values["kind"]):
            raise ValueError(f"{name} is of kind {kind!r} and of preset {preset!r}; leave one of them out")
        task = merged(values, {k: v for k, v in task.items() if k != "kind"})
    return task


def _with_prompt(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A section, or a task file, with the text of its `prompt_file` in place of its name."""
    task = dict(given)
    if place := task.pop("prompt_file", None):
        if task.get("prompt"):
            raise ValueError(f"{name} has a prompt and a prompt_file; leave one of them out")
        task["prompt"] = _read(Path(str(place)).expanduser(), "prompt_file")
    return task


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with the keys of another in place of its own."""
    tree = dict(base)
    for key, value in over.items():
        old = tree.get(key)
        tree[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return tree


def _task_file(path: Path) -> dict[str, Any]:
    task = strict_yaml.load(_read(path, "file"), str(path))
    if not isinstance(task, dict) or "tasks" in task:
        raise ValueError(f"{path}: a task file is the mapping that stands under a task's name, not a configuration")
    return task


def _read(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"{key} {path} cannot be read ({reason})") from None


def _in_folder(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A task file's places, relative to it; a source that is not there is taken for a hub id, what is unlabeled
    for one of its splits."""
    given = {key: str(task[key]) for key in ("prompt_file", "unlabeled", "source") if task.get(key)}
    here = {
        key: str(folder / Path(place).expanduser())
        for key, place in given.items()
        if key == "prompt_file" or is_file_name(place) or (folder / place).exists()
    }
    return task | here


def is_file_name(name: str) -> bool:
    """Whether a name is that of data files, there or not, rather than a hub id (`owner/name`)."""
    return name.startswith((".", "/", "~")) or "*" in name or Path(name).suffix.lower() in SUFFIXES
