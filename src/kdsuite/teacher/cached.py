"""Teacher outputs on disk: computed once, found by example id, trusted only if whole.

A cache lies in `teacher_cache/<task>/<fingerprint>/`; the fingerprint covers everything the outputs depend
on, so a changed template, model, target or k is another folder. Shards are safetensors that name their examples;
the manifest has each shard's sha256 and is rewritten after every one, so that an interrupted build goes on behind
the last complete one. A shard that is missing or whose hash has changed is rebuilt.

What is imported takes the place of all that: its shards have names of their own until one manifest names them all.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from kdsuite.errors import RunError
from kdsuite.store.artefact import altered
from kdsuite.store.files import atomic_write_bytes, atomic_write_record, fingerprint, read_json, sha256_file
from kdsuite.store.layout import MANIFEST, QUALITY
from kdsuite.tasks.batching import batches_by_length
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.base import Record, Teacher, likeliest
from kdsuite.teacher.local import join
from kdsuite.teacher.shards import shard_of, shards

SHARDS = "part-*.safetensors"
FORMAT = 3  # of what is on disk; part of the key, so that another one is another cache


class CachedTeacher(Teacher):
    """What a teacher said of the examples of one task, read-only and memory-mapped. KeyError for an unknown id.

    `labels` are the names of those that were scored, if any.
    """

    def __init__(self, folder: Path, labels: Sequence[str] = ()):
        self.manifest = read_json(folder / MANIFEST)
        self.labels = labels
        self._where: dict[str, tuple[Any, int, int, int]] = {}  # of each id its shard, number and positions there
        for listed in self.manifest["shards"]:
            shard = safe_open(folder / listed["file"], framework="numpy")
            places = pairwise(shard.get_tensor("offsets").tolist())
            for index, (id, place) in enumerate(zip(json.loads(shard.metadata()["ids"]), places, strict=True)):
                self._where[id] = shard, index, *place

    @property
    def offers(self) -> frozenset[str]:
        kept = self.manifest["key"]["outputs"]
        also = {"class_scores": kept["labels"], "states": kept["layers"], "answers": self.labels}
        return frozenset({"distributions"}).union(offer for offer, there in also.items() if there)

    @property
    def temperatures(self) -> tuple[float, ...]:
        return (1.0, *self.manifest["key"]["outputs"]["temperatures"])

    def tail(self, temperature: float) -> float:
        """The mean probability at T of all tokens that are not kept, over all positions."""
        column = self.temperatures.index(temperature)
        shards = {id(shard): shard for shard, *_ in self._where.values()}.values()
        logs = np.concatenate([shard.get_tensor("log_tail")[:, column] for shard in shards])
        return float(np.exp(logs.astype(np.float64)).mean())

    def outputs(self, examples: Sequence[Encoded]) -> list[Record]:
        return [self[example.id] for example in examples]

    def answers(self, examples: Sequence[Encoded]) -> list[tuple[str, float]]:
        if not self.labels:
            raise self._lacks("answers")
        return likeliest(self.labels, [self[e.id]["class_scores"] for e in examples])

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, id: str) -> Record:
        shard, index, start, end = self._where[id]
        return {
            name: shard.get_slice(name)[index] if name == "class_scores" else shard.get_slice(name)[start:end]
            for name in shard.keys()  # noqa: SIM118 - no mapping, it only has keys()
            if name != "offsets"
        }


def build_cache(
    folder: Path,
    key: dict[str, Any],
    examples: Sequence[Encoded],
    ask: Callable[[Sequence[Encoded]], list[Record]],
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> CachedTeacher:
    """Complete the cache of `examples` in `folder`, computing only what is missing, and open it.

    `ask` returns the records of a batch of examples in their order; batches are of similar length. `key` says
    what went in and is kept in the manifest. RunError if the teacher's outputs are not finite.
    """
    count = shards(len(examples))
    for number in range(count):
        build_shard(folder, key, examples, number, ask, batch_size, advance)
    listed = _listed(folder, key)["shards"][:count]
    atomic_write_record(folder / MANIFEST, {"key": key, "shards": listed, "complete": True})
    return CachedTeacher(folder)


def replace_cache(
    folder: Path,
    key: dict[str, Any],
    examples: Sequence[Encoded],
    ask: Callable[[Sequence[Encoded]], list[Record]],
    imported: dict[str, str],
    ready: Callable[[], object],
) -> None:
    """Put what `ask` returns in the place of all that is in `folder`, at once: when all of it is written, `ready` is
    called and the manifest names it, with the `file` and the `sha256` that it was imported from. What goes wrong before
    leaves the cache as it was."""
    try:
        made = []
        for number in range(shards(len(examples))):
            part = shard_of(examples, number)
            made.append(_write_shard(folder / _shard_file(number, f"-{imported['sha256'][:8]}"), part, ask(part)))
        ready()
        atomic_write_record(folder / MANIFEST, {"key": key, "shards": made, "complete": True, "imported": imported})
    finally:
        remove_unlisted(folder, key)


def remove_unlisted(folder: Path, key: dict[str, Any]) -> None:
    """Delete shards that the manifest does not name: of before an import, or of one that was stopped. Nobody else may
    be writing any: the caller holds the locks of all parts."""
    listed = {shard["file"] for shard in _listed(folder, key)["shards"]}
    for path in folder.glob(SHARDS):
        if path.name not in listed:
            path.unlink()


def imported_into(folder: Path) -> dict[str, dict[str, str]]:
    """Of what was imported into a cache, `outputs` or `answers`, the `file` and its `sha256`."""
    manifest, quality = _facts(folder / MANIFEST), _facts(folder / QUALITY)
    found = {"outputs": manifest.get("imported"), "answers": quality.get("imported", {}).get("answers")}
    return {what: came for what, came in found.items() if came}


def _facts(path: Path) -> dict[str, Any]:
    """A record beside the outputs; {} where there is none, or a damaged one."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return {}


def _shard_file(number: int, mark: str = "") -> str:
    return f"part-{number:05d}{mark}.safetensors"


def has_shard(folder: Path, key: dict[str, Any], number: int) -> bool:
    """Whether a shard of a cache is there unaltered, asked for or imported."""
    listed = {one["file"]: one["sha256"] for one in _listed(folder, key)["shards"]}
    known = {file: content for file, content in listed.items() if re.split(r"[-.]", file)[1] == f"{number:05d}"}
    return bool(known) and not altered(folder, known)


def build_shard(
    folder: Path,
    key: dict[str, Any],
    examples: Sequence[Encoded],
    number: int,
    ask: Callable[[Sequence[Encoded]], list[Record]],
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
    alone: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """One shard of a cache, unless it is there unaltered. Others may be built by others meanwhile: the manifest is
    read and written while `alone` is entered."""
    part, file = shard_of(examples, number), _shard_file(number)
    if has_shard(folder, key, number):
        advance(len(part))
        return
    records: dict[int, Record] = {}
    for indices in batches_by_length([len(e) for e in part], batch_size):
        records |= zip(indices, ask([part[i] for i in indices]), strict=True)
        advance(len(indices))
    made = _write_shard(folder / file, part, [records[i] for i in range(len(part))])
    with alone():
        others = [shard for shard in _listed(folder, key)["shards"] if shard["file"] != file]
        ordered = sorted([*others, made], key=itemgetter("file"))
        atomic_write_record(folder / MANIFEST, {"key": key, "shards": ordered, "complete": False})


def keep_key(folder: Path, key: dict[str, Any]) -> None:
    """Say what a folder's answers depend on, where no outputs are kept beside them."""
    if not (folder / MANIFEST).exists():
        atomic_write_record(folder / MANIFEST, {"key": key, "shards": [], "complete": False})


def is_complete(folder: Path, key: dict[str, Any]) -> bool:
    """Whether a whole cache lies in `folder`, none of its shards missing or altered."""
    manifest = _listed(folder, key)
    return manifest["complete"] and not altered(folder, {one["file"]: one["sha256"] for one in manifest["shards"]})


def targets_fingerprint(examples: Sequence[Encoded]) -> str:
    """Identifies prompts and targets as the teacher reads them: template, tokenizer, windows and texts."""
    return fingerprint([[e.id, e.input_ids, e.targets, e.gold] for e in examples])


def _listed(folder: Path, key: dict[str, Any]) -> dict[str, Any]:
    """The manifest as it stands; an empty one where there is none of this key, or a damaged one."""
    try:
        manifest = read_json(folder / MANIFEST)
        whole = "complete" in manifest and all("sha256" in shard for shard in manifest["shards"])
        if whole and manifest["key"] == json.loads(json.dumps(key)):
            return manifest
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return {"key": key, "shards": [], "complete": False}


def _write_shard(path: Path, examples: Sequence[Encoded], records: list[Record]) -> dict[str, Any]:
    positions = [len(record["topk_ids"]) for record in records]
    arrays = {name: join(records, name) for name in records[0] if name != "class_scores"}
    if "class_scores" in records[0]:
        arrays["class_scores"] = np.stack([record["class_scores"] for record in records])
    bad = [name for name, values in arrays.items() if not np.isfinite(values).all()]
    if bad:
        raise RunError(f"the teacher's {', '.join(bad)} are not finite; try dtype float32 for the teacher")
    arrays["offsets"] = np.cumsum([0, *positions], dtype=np.int64)
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    atomic_write_bytes(path, to_safetensors(arrays, {"ids": json.dumps([e.id for e in examples])}))
    size = {"bytes": path.stat().st_size, "positions": sum(positions), "examples": len(examples)}
    return {"file": path.name, "sha256": sha256_file(path), **size}
