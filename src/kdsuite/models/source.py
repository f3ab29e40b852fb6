"""Where a model comes from: a hub id at a commit, a folder, or a folder that holds an adapter for another model.

An adapter is worth nothing without its base, so it says where that is: `adapter_config.json` has the hub id with
its commit, or the absolute path of a folder, which is what plain peft reads. Beside it, `base.json` has what finds
a folder again after a move (the way there from the adapter) and tells whether it is still the same model.
Nothing here imports torch: a plan resolves models, too.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kdsuite.config import OFFLINE_STUDENT, OFFLINE_TEACHER, ModelSettings, Settings, TeacherSettings, looks_local
from kdsuite.errors import ModelError, OutOfMemory
from kdsuite.models.costs import ADAPTER_CONFIG, CONFIG
from kdsuite.runtime import hub
from kdsuite.store.files import atomic_write_json, atomic_write_record, fingerprint, folder_fingerprint, read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"
WEIGHTS_INDEX = "model.safetensors.index.json"
BASE_PATH = "base_model_name_or_path"  # peft's name for it
TOKENIZER_CONFIG = "tokenizer_config.json"
OFFLINE_MODELS = (OFFLINE_TEACHER, OFFLINE_STUDENT)


class TooLarge(ModelError, OutOfMemory):
    """A model whose weights are more than the memory."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: `where` is a folder or a hub id, `name` what it is called in records.

    `base` is the model that an adapter in the folder `where` belongs to. `stands_in` says of a fallback why it
    was taken. `prompts` are the settings that make its prompts: `system` and `chat_template_kwargs`.
    """

    name: str
    where: str
    revision: str | None = None
    base: Self | None = None
    stands_in: str | None = field(default=None, compare=False)
    prompts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def at(cls, where: str, name: str | None = None, revision: str | None = None) -> Self:
        """The model in a folder (an adapter with its base) or on the hub. ModelError if there is no such base."""
        folder = Path(where)
        if not folder.is_dir():
            return cls(name or where, where, revision)
        return cls(name or folder.absolute().name, where, revision, base_of(folder))

    @property
    def is_folder(self) -> bool:
        return Path(self.where).is_dir()

    @property
    def whole(self) -> Self:
        """What has the configuration and the weights of a whole model: the base of an adapter, else itself."""
        return self.base.whole if self.base else self

    @property
    def tokenizing(self) -> Self:
        """What has the tokenizer: an adapter's folder may have its own, else it is that of its base."""
        if self.base is None or (Path(self.where) / TOKENIZER_CONFIG).exists():
            return self
        return self.base.tokenizing

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and the tokenizer: a folder's content, or the hub id and revision.

        Of an adapter also its base.
        """
        where = Path(self.where)
        own = folder_fingerprint(where) if where.is_dir() else fingerprint([self.where, self.revision])
        return fingerprint([own, self.base.fingerprint]) if self.base else own

    @property
    def commit(self) -> str | None:
        """The commit of a hub model, once it is in the cache (else the revision); None for a folder."""
        if self.is_folder:
            return None
        cached = hub.cached(self.where, CONFIG, self.revision)
        return cached.parent.name if cached else self.revision


# --- adapters


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; some tools put the base's configuration beside it."""
    return (folder / ADAPTER_CONFIG).exists()


def base_of(folder: Path) -> ModelSource | None:
    """The model that the adapter in `folder` belongs to; None where the folder holds a whole model.

    A folder is looked for at the path that the adapter names, then on the way there from the adapter, and taken if
    its weights are those of then. ModelError says what was expected where.
    """
    if not is_adapter(folder):
        return None
    about, kept = _read(folder / ADAPTER_CONFIG), _kept(folder)
    named, revision = about.get(BASE_PATH), about.get("revision")
    if not named:
        raise ModelError(f"the adapter {folder} does not name its base; write it into {BASE_PATH} of {ADAPTER_CONFIG}")
    places = [Path(named).expanduser()]
    if looks_local(named):  # a relative path is meant from here, or from the adapter
        places.append(folder / named)
    if "way" in kept:
        places.append(Path(os.path.normpath(folder.resolve() / kept["way"])))
    places = list(dict.fromkeys(places))
    for place in places:
        if place.is_dir() and kept.get("weights") in (None, weights_fingerprint(place)):
            return ModelSource.at(str(place), kept.get("name"))
    if not kept and not looks_local(named):
        return ModelSource(named, named, revision)
    altered = [str(place) for place in places if place.is_dir()]
    what = f"has other weights now ({' and '.join(altered)})" if altered else "is gone"
    raise ModelError(
        f"the base of the adapter {folder} {what}; it was looked for at {' and at '.join(map(str, places))}: put the "
        f"model of then back there, or write where it is into {BASE_PATH} of the adapter's {ADAPTER_CONFIG}"
    )


def keep_base(folder: Path, base: ModelSource) -> None:
    """Write into the adapter in `folder` what it is for, so that `base_of` and plain peft find it."""
    about = _read(folder / ADAPTER_CONFIG)
    where = str(Path(base.where).absolute()) if base.is_folder else base.where
    atomic_write_json(folder / ADAPTER_CONFIG, about | {BASE_PATH: where, "revision": base.commit})
    (folder / BASE).unlink(missing_ok=True)
    if base.is_folder:
        way = os.path.relpath(Path(where).resolve(), folder.resolve())
        kept = {"name": base.name, "way": Path(way).as_posix(), "weights": weights_fingerprint(Path(where))}
        atomic_write_record(folder / BASE, kept)


def check_base(folder: Path, base: ModelSource) -> None:
    """ModelError if the adapter in `folder` was trained on other weights than those of the folder `base`."""
    kept = _kept(folder)
    if base.is_folder and kept.get("weights") not in (None, weights_fingerprint(Path(base.where))):
        raise ModelError(
            f"the adapter {folder} was trained on other weights ({kept['name']}) than those in {base.where} now; "
            "train it again, or give the model of then"
        )


def weights_fingerprint(folder: Path) -> str:
    """Identifies the weights in a model or adapter folder and their configuration; of an adapter also its base's."""
    names = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    config = folder / (ADAPTER_CONFIG if is_adapter(folder) else CONFIG)
    content = [[path.name, folder_fingerprint(path)] for path in (config, *names) if path.exists()]
    base = base_of(folder)
    if base is None:
        return fingerprint(content)
    below = weights_fingerprint(Path(base.where)) if base.is_folder else base.fingerprint
    return fingerprint([content, below])


def _kept(folder: Path) -> dict[str, Any]:
    return _read(folder / BASE) if (folder / BASE).exists() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ModelError(f"{error}; give another copy of the adapter") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object; give another copy of the adapter")
    return content


# --- what is not here


def hub_models(settings: Settings) -> list[ModelSettings]:
    """The models that a configuration takes from the hub, the teacher first, its fallback second.

    For an adapter in a folder that is what it belongs to, if that is known.
    """
    teacher, models = settings.models.teacher, {}
    if not isinstance(teacher, TeacherSettings):  # of one behind a URL the tokenizer
        teacher = ModelSettings(name=teacher.tokenizer)
    fallback = [ModelSettings(name=name)] if (name := settings.models.teacher.fallback) else []
    for model in (teacher, *fallback, *(settings.models.students[name] for name in settings.students)):
        with suppress(ModelError):
            if base := base_of(Path(model.name)):
                model = ModelSettings(name=base.whole.where, revision=base.whole.revision)
        models[model.name] = model
    return [model for name, model in models.items() if name not in OFFLINE_MODELS and not Path(name).exists()]


def missing_files(folder: Path) -> list[str]:
    """Which of a model's own files a folder lacks: its configuration, weights, or shards that their index names."""
    if is_adapter(folder):
        return [] if (folder / ADAPTER_WEIGHTS).exists() else [ADAPTER_WEIGHTS]
    weights = [] if list(folder.glob("*.safetensors")) else ["*.safetensors"]
    if (folder / WEIGHTS_INDEX).exists():
        weights = sorted(set(_read(folder / WEIGHTS_INDEX).get("weight_map", {}).values()))
    return [name for name in (CONFIG, *weights) if not (folder / name).exists()]
