"""Teacher outputs on disk: computed once, found by example id, trusted only if whole.

A cache lies in `teacher_cache/<task>/<fingerprint>/`; the fingerprint covers everything the outputs depend
on, so a changed template, model, target or k is another folder. Shards are safetensors; the manifest names
each with its sha256 and its example ids and is rewritten after every shard, so that an interrupted build goes
on behind the last complete one; where shards are made faster than that, after several (a kill loses seconds, Ctrl-C
and errors nothing), as it grows with their number. A shard that is missing or whose hash has changed is rebuilt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from kdsuite.errors import RunError
from kdsuite.runtime.files import atomic_write_bytes, atomic_write_record, fingerprint, read_json, sha256_file
from kdsuite.tasks.batching import batches_by_length
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.inference import Record, join
from kdsuite.teacher.layout import MANIFEST

SHARD = 1024  # examples
PATIENCE = 20  # times as long as the manifest took to write, at least, until it is written again


class TeacherCache:
    """The records of one task and teacher, read-only and memory-mapped. KeyError for an unknown id."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_json(folder / MANIFEST)
        self._shards = [
            safe_open(folder / shard["file"], framework="numpy") for shard in self.manifest["shards"]
        ]
        self._offsets = [shard.get_tensor("offsets") for shard in self._shards]
        self._where = {
            id: (number, index)
            for number, shard in enumerate(self.manifest["shards"])
            for index, id in enumerate(shard["ids"])
        }

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, id: str) -> bool:
        return id in self._where

    def __getitem__(self, id: str) -> Record:
        number, index = self._where[id]
        shard, offsets = self._shards[number], self._offsets[number]
        start, end = int(offsets[index]), int(offsets[index + 1])
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
) -> TeacherCache:
    """Complete the cache of `examples` in `folder`, computing only what is missing, and open it.

    `ask` returns the records of a batch of examples in their order; batches are of similar length. `key` says
    what went in and is kept in the manifest. RunError if the teacher's outputs are not finite.
    """
    manifest = _trusted_manifest(folder, key)
    trusted = {shard["file"]: shard for shard in manifest["shards"]}
    shards: list[dict[str, Any]] = []
    due, behind = 0.0, False

    def note() -> None:
        nonlocal due, behind
        started = time.monotonic()
        rest = [shard for name, shard in sorted(trusted.items()) if name > shards[-1]["file"]]
        atomic_write_record(folder / MANIFEST, {"key": key, "shards": shards + rest, "complete": False})
        now = time.monotonic()
        due, behind = now + PATIENCE * (now - started), False

    try:
        for number, at in enumerate(range(0, len(examples), SHARD)):
            part = examples[at : at + SHARD]
            file = f"part-{number:05d}.safetensors"
            if file in trusted:
                shards.append(trusted[file])
                advance(len(part))
                continue
            records = _ask_by_length(part, ask, batch_size, advance)
            shards.append(_write_shard(folder / file, part, records))
            behind = True
            if time.monotonic() >= due:
                note()
    finally:
        if behind:
            note()
    if not manifest["complete"]:
        atomic_write_record(folder / MANIFEST, {"key": key, "shards": shards, "complete": True})
    return TeacherCache(folder)


def is_complete(folder: Path, key: dict[str, Any]) -> bool:
    """Whether a whole, unaltered cache lies in `folder`."""
    return bool(_trusted_manifest(folder, key)["complete"])


def cache_fingerprint(key: dict[str, Any]) -> str:
    return fingerprint(key)[:16]


def targets_fingerprint(examples: Sequence[Encoded]) -> str:
    """Identifies prompts and targets as the teacher reads them: template, tokenizer, windows and texts."""
    return fingerprint([[e.id, e.input_ids, e.targets, e.gold] for e in examples])


def _trusted_manifest(folder: Path, key: dict[str, Any]) -> dict[str, Any]:
    """The manifest with those shards only that are there and unaltered; the others are rebuilt."""
    fresh = {"key": key, "shards": [], "complete": False}
    try:
        manifest = read_json(folder / MANIFEST)
    except (FileNotFoundError, ValueError):
        return fresh
    if not isinstance(manifest, dict) or manifest.get("key") != key or "shards" not in manifest:
        return fresh
    whole = [shard for shard in manifest["shards"] if _unaltered(folder / shard["file"], shard["sha256"])]
    return manifest | {
        "shards": whole,
        "complete": manifest["complete"] and len(whole) == len(manifest["shards"]),
    }


def _unaltered(path: Path, sha256: str) -> bool:
    return path.exists() and sha256_file(path) == sha256


def _ask_by_length(
    examples: Sequence[Encoded],
    ask: Callable[[Sequence[Encoded]], list[Record]],
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Record]:
    records: list[Record | None] = [None] * len(examples)
    for indices in batches_by_length([len(e) for e in examples], batch_size):
        answers = ask([examples[i] for i in indices])
        for index, record in zip(indices, answers, strict=True):
            records[index] = record
        advance(len(indices))
    return [record for record in records if record is not None]


def _write_shard(path: Path, examples: Sequence[Encoded], records: list[Record]) -> dict[str, Any]:
    positions = [len(record["topk_ids"]) for record in records]
    arrays = {name: join(records, name) for name in records[0] if name != "class_scores"}
    if "class_scores" in records[0]:
        arrays["class_scores"] = np.stack([record["class_scores"] for record in records])
    bad = [name for name, values in arrays.items() if not np.isfinite(values).all()]
    if bad:
        raise RunError(f"the teacher's {', '.join(bad)} are not finite; try dtype float32 for the teacher")
    arrays["offsets"] = np.cumsum([0, *positions], dtype=np.int64)
    atomic_write_bytes(path, to_safetensors({name: np.ascontiguousarray(a) for name, a in arrays.items()}))
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "positions": sum(positions),
        "ids": [e.id for e in examples],
    }
