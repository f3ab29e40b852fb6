"""What a teacher said elsewhere, taken into the cache as if it had been asked here: `kdsuite cache --import`.

Nothing is believed that can be checked: every training example is there once and no other, tokens spell the targets
that this teacher's tokenizer reads, log-probabilities are some. docs/cache.md has the schemas.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from kdsuite.config import TEACHER
from kdsuite.errors import DataError, ModelError, SettingsError
from kdsuite.jobs.asking import write_answers
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import splits, task
from kdsuite.jobs.models import chat, keep_as_imported, server_found
from kdsuite.jobs.teaching import (
    answers,
    cache_folder,
    cache_key,
    imported,
    lesson_examples,
    lessons,
    output_settings,
    quality,
    teacher_cache,
)
from kdsuite.jobs.transfer import taught
from kdsuite.store import files
from kdsuite.store.layout import QUALITY
from kdsuite.tasks.encoding import Encoded
from kdsuite.tasks.sources import is_whole
from kdsuite.teacher.base import Record
from kdsuite.teacher.cached import keep_key, replace_cache
from kdsuite.teacher.http import record_of

COLUMNS = ("id", "token_ids", "topk_ids", "topk_logprobs")


def import_file(bench: Bench, name: str, path: Path) -> str:
    """Take a file into the cache of a task's teacher, in the place of what is there; returns what was taken, in words.

    DataError for a file that is not what this teacher could have said, SettingsError for a plan that needs what no file
    tells: then, and where it is stopped, what was there stays. The caller holds the locks of the task and of its parts.
    """
    if bench.settings.models.served:
        try:
            server_found(bench)
        except ModelError:  # there may be no server any more
            keep_as_imported(bench)
    bench.forget(quality)
    if path.suffix == ".parquet":
        new, taken = _outputs(bench, name, path), "outputs"
    elif path.suffix in (".jsonl", ".ndjson"):
        new, taken = _answers(bench, name, path), "answers"
    else:
        raise DataError(f"{path}: give JSON lines (.jsonl) of answers, or Parquet (.parquet) of log-probabilities")
    new["imported"] = {**new.get("imported", {}), taken: _source(path)}
    files.atomic_write_record(cache_folder(bench, name) / QUALITY, new)
    bench.forget(imported, quality, answers, teacher_cache, lessons, lesson_examples)
    return f"{name}: {taken} of {len(splits(bench, name)['train']):,} training examples are taken from {path}"


def _source(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": files.sha256_file(path)}


def _answers(bench: Bench, name: str, path: Path) -> dict[str, Any]:
    """Write the answers of a file; returns what is known of the quality of outputs and answers now."""
    rows, kind = {}, task(bench, name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):  # `splitlines` would also cut inside a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            id, answer, given = str(row["id"]), row["answer"], row.get("confidence")
            confidence = 0.0 if given is None else float(given)
        except (ValueError, KeyError, TypeError, OverflowError):
            raise DataError(f"{path}, line {number}: not an object with id and answer") from None
        if not isinstance(answer, str) or not is_whole(answer) or not 0.0 <= confidence <= 1.0:
            raise DataError(
                f"{path}, line {number}: answer is a text of whole characters, confidence a number from 0 to 1"
            )
        if kind.labels and answer not in kind.labels:
            raise DataError(f"{path}, line {number}: {answer!r} is no label of {name} ({', '.join(kind.labels)})")
        if id in rows:
            raise DataError(f"{path}, line {number}: the id {id!r} is there twice")
        rows[id] = answer, confidence
    wanted = [example.id for example in splits(bench, name)["train"]]
    _refuse_other_ids(path, list(rows), wanted)
    keep_key(cache_folder(bench, name), cache_key(bench, name))
    return {**quality(bench, name), **write_answers(bench, name, [rows[id] for id in wanted])}


def _refuse_other_ids(path: Path, given: Sequence[str], wanted: Sequence[str]) -> None:
    """DataError unless every one that is wanted is given once, and no other."""
    there, needed = Counter(given), {*wanted}
    twice = [id for id, count in there.items() if count > 1]
    missing, unknown = [id for id in wanted if id not in there], [id for id in there if id not in needed]
    for what, ids in (("has twice", twice), ("lacks", missing), ("has unknown", unknown)):
        if ids:
            raise DataError(
                f"{path} {what} {len(ids):,} ids, as {ids[0]!r}; it is to have the {len(wanted):,} training examples "
                "(processed_data/), each once"
            )


def _outputs(bench: Bench, name: str, path: Path) -> dict[str, Any]:
    """Put the outputs of a file in the place of those that are there; returns what is still known of their quality: not
    what was measured of the old ones, nor of labels that were read off their scores."""
    examples, keep = taught(bench, name, TEACHER), output_settings(bench, name)
    others = {"hidden states": keep.layers, "standardised logits": keep.standardised, "drawn tokens": keep.draws}
    if lacking := [what for what, wanted in others.items() if wanted]:
        raise SettingsError(
            f"this plan reads the teacher's {' and '.join(lacking)}, which no file tells; leave out what does (KD3, "
            "kd1.standardise, kd1.targets other than topk_tail), or ask the teacher"
        )
    columns = (*COLUMNS, *(("class_scores",) if keep.labels else ()))
    try:
        read = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if absent := [column for column in columns if column not in read.column_names]:
        raise DataError(f"{path} lacks the column {', '.join(absent)}; docs/cache.md has the schema")
    rows = {str(row["id"]): row for row in read.select(columns).to_pylist()}
    _refuse_other_ids(path, [str(id) for id in read.column("id").to_pylist()], [e.id for e in examples])

    def record(example: Encoded) -> Record:
        return _record(bench, name, path, rows[example.id], example)

    folder, known = cache_folder(bench, name), quality(bench, name)
    if keep.labels and "answers" not in known.get("imported", {}):
        known = {}
    known = {what: found for what, found in known.items() if what not in ("coverage", "targets")}

    def forget_the_old() -> None:
        files.atomic_write_record(folder / QUALITY, known)

    key, came = cache_key(bench, name), _source(path)
    replace_cache(folder, key, examples, lambda some: [record(e) for e in some], came, forget_the_old)
    return known


def _record(bench: Bench, name: str, path: Path, row: dict[str, Any], example: Encoded) -> Record:
    tokens, keep = chat(bench, TEACHER), output_settings(bench, name)
    size, where = len(tokens.token_bytes), f"{path}, {example.id}"
    k = min(keep.top_k, size)
    targets = example.targets[example.gold_slice]
    given = row["token_ids"]
    if not isinstance(given, list) or not all(isinstance(id, int) for id in given):
        raise DataError(f"{where}: its token_ids are whole numbers, one per token of the target; it has {given!r:.60}")
    if given != targets:
        said = tokens.bytes_of([id for id in given[:-1] if 0 <= id < size])
        raise DataError(
            f"{where}: its tokens are not those of the target, {tokens.bytes_of(targets[:-1])!r} and an end of turn, "
            f"but {said!r} ({len(given)} of {len(targets)}); the tokenizer or the target is another one"
        )
    try:
        ids = np.array([one[:k] for one in row["topk_ids"]], dtype=np.int64)
        logprobs = np.array([one[:k] for one in row["topk_logprobs"]], dtype=np.float64)
        scores = np.array(row.get("class_scores") or [], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{where}: positions have different numbers of tokens, or what are no numbers") from None
    if ids.shape != (len(targets), k) or logprobs.shape != ids.shape or scores.shape != (keep.labels,):
        raise DataError(
            f"{where}: {len(targets)} positions of {k} tokens and {keep.labels} class scores are wanted, it has ids "
            f"{list(ids.shape)}, log-probabilities {list(logprobs.shape)} and {scores.size} class scores"
        )
    odd = not np.isfinite(logprobs).all() or (logprobs > 1e-3).any() or (np.exp(logprobs).sum(-1) > 1.01).any()
    if odd or not np.isfinite(scores).all() or (scores > 1e-3).any() or (np.diff(logprobs) > 1e-6).any():
        raise DataError(
            f"{where}: log-probabilities are finite, at most 0, together at most 1, and the likeliest first"
        )
    if (np.diff(np.sort(ids)) == 0).any():
        raise DataError(f"{where}: a token is there twice at one of its positions")
    if ids.min() < 0 or ids.max() >= size:
        raise DataError(f"{where}: tokens are from 0 to {size - 1}, it has {ids.min()} to {ids.max()}")
    made = record_of(example, ids, np.minimum(logprobs, 0.0), size, keep)
    return made | ({"class_scores": scores.astype(np.float32)} if keep.labels else {})
