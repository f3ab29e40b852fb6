"""Files that another stage may trust: whole or not there at all.

Everything is written to a temporary name in the same folder, flushed to the disk and renamed over the
target, so that a reader (or the next run after a crash) sees the old content or the new one, never half of
it. Left-overs of a crash carry a name that starts with `.tmp-` and are never read.
JSON is canonical (sorted keys, no NaN), so that equal contents are equal bytes and equal fingerprints. Records
that decide what is trusted carry a hash of their own content, so that an altered one is noticed when it is read.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
LONGEST = 100  # characters of a name that a temporary one has of it
SEAL = "seal"  # the key of a record's hash of itself
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
guards: list[Callable[[], None]] = []  # called before anything takes its place; each raises if it must not

HASHED_WHOLE = 1 << 20  # bytes; a file up to this size enters a folder's fingerprint entirely
HASHED_END = 1 << 16  # bytes of the head and of the tail of a bigger one


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, or leave it as it was if anything goes wrong (OSError)."""
    with _taking_the_place_of(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, data: str) -> None:
    """Like `atomic_write_bytes`, in UTF-8 and with the line ends as given."""
    atomic_write_bytes(path, data.encode("utf-8"))


def atomic_write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Like `atomic_write_text`: JSON lines, an object each."""
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of JSON lines, parsed in one go (twice as fast as line by line); FileNotFoundError, ValueError."""
    with path.open(encoding="utf-8") as stream:  # not `splitlines`, which also cuts inside a string
        lines = [line for line in stream if line.strip()]
    rows = json.loads(f"[{','.join(lines)}]")
    if len(rows) != len(lines):
        raise ValueError(f"{len(rows)} objects in {len(lines)} lines")
    return rows


def atomic_write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON with sorted keys; ValueError names the first number that is not finite."""
    text = _json(obj, indent=1)
    atomic_write_text(path, text + "\n")


def atomic_write_record(path: Path, record: dict[str, Any]) -> None:
    """Like `atomic_write_json`, with a hash of the content that `read_json` checks."""
    content = json.loads(_json(record, indent=None))
    atomic_write_json(path, content | {SEAL: fingerprint(content)})


def read_json(path: Path) -> Any:
    """The content of a JSON file, without its seal.

    FileNotFoundError, or ValueError with the path if it is not JSON or altered since it was sealed.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if isinstance(content, dict) and SEAL in content and content.pop(SEAL) != fingerprint(content):
        raise ValueError(f"{path}: altered since it was written")
    return content


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends without an error.

    An old folder of that name is put aside first and removed after the swap: between the two renames, a
    crash can leave no folder (it is rebuilt then), but never a mixture of two.
    """
    with _taking_the_place_of(path) as temporary:
        temporary.mkdir()
        yield temporary


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Delete what a killed process left half-written directly in `folder`, of files or folders named `name`.

    Nobody else may be writing them: the caller holds their lock.
    """
    for entry in Path(folder).glob(f"{TEMPORARY}*"):
        named = entry.name.split("-", 3)[3:]  # not by a pattern: `*-sst2` is "my-sst2", too, which others may write
        if name == "*" or named == [name[:LONGEST]]:
            _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fingerprint(obj: Any) -> str:
    """The sha256 (hex) of the canonical JSON of `obj`; ValueError for numbers that are not finite."""
    return hashlib.sha256(_json(obj, indent=None).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 (hex) of a file's bytes, read in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_fingerprint(path: Path) -> str | None:
    """Identify a file or a folder by every byte of it; None if there is nothing, or another process takes it away
    meanwhile. Hidden files do not count."""
    path = Path(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir():
            return fingerprint([[name, sha256_file(file)] for name, file in _visible(path)])
        return sha256_file(path)


def folder_fingerprint(path: Path) -> str:
    """Identify a file or a folder's content quickly: names, sizes, small files whole, ends of big ones.

    Good against another model or data set under the same name, not against an adversary. Hidden files
    (caches, left-overs) do not count. FileNotFoundError if there is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        return fingerprint([path.stat().st_size, _hash_ends(path)])
    return fingerprint([[name, file.stat().st_size, _hash_ends(file)] for name, file in _visible(path)])


def storage_problem(error: BaseException) -> str | None:
    """What is wrong with the disk (full, read-only, not ours) if that is why something failed, else None."""
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(r"os error (\d+)", str(error))):  # safetensors tells it in words
        number = int(told[1])
    return os.strerror(number) if number in STORAGE_ERRORS else None


def folder_bytes(path: Path) -> int:
    """The size of all files below `path`, in bytes, without what is being written."""
    total = 0
    for file in listed(path, "**/*"):
        with suppress(FileNotFoundError):  # another process may take it away
            total += file.stat().st_size if file.is_file() else 0
    return total


def listed(folder: Path, pattern: str) -> list[Path]:
    """What a pattern matches in a folder, without what is being written; any of it may be gone when it is read."""
    return [path for path in Path(folder).glob(pattern) if not path.name.startswith(TEMPORARY)]


def changes(folder: Path) -> dict[str, int]:
    """What lies in a folder, with the times of its last change (ns); empty without the folder. Neither what is being
    written nor what another process takes away meanwhile is in it."""
    found = {}
    for path in listed(folder, "*"):
        with suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


def free_bytes(path: Path) -> int:
    """The free space, in bytes, of the disk that holds `path` or will hold it."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def _json(obj: Any, indent: int | None) -> str:
    separators = None if indent else (",", ":")
    try:
        return json.dumps(obj, sort_keys=True, allow_nan=False, indent=indent, separators=separators)
    except ValueError as error:
        place = _not_finite(obj)
        if place is None:
            raise
        raise ValueError(f"cannot be written as JSON: {place} is not a finite number") from error


def _not_finite(obj: Any, place: str = "the value") -> str | None:
    """Where in `obj` the first infinite or undefined number is."""
    if isinstance(obj, float):
        return None if obj - obj == 0.0 else f"{place} ({obj})"
    items = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list | tuple) else ()
    prefix = "" if place == "the value" else f"{place}."
    return next((found for key, value in items if (found := _not_finite(value, f"{prefix}{key}"))), None)


@contextmanager
def _taking_the_place_of(path: Path) -> Iterator[Path]:
    """Yield a new name beside `path`; what is written there, a file or a folder, is renamed over it at the end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (
        path.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name[:LONGEST]}") for _ in range(2)
    )
    try:
        yield temporary
        for entry in [*sorted(temporary.rglob("*")), temporary]:
            _sync(entry)
        for guard in list(guards):
            guard()
        if temporary.is_dir():  # nothing takes the place of a folder that is not empty
            with suppress(FileNotFoundError):
                path.rename(old)
        temporary.replace(path)
        _sync(path.parent)
        _remove(old)
    finally:
        _remove(temporary)


def _sync(path: Path) -> None:
    """Make a file's content, or a rename in a folder, last; some file systems have no such call for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _visible(folder: Path) -> list[tuple[str, Path]]:
    """The files of a folder that are not hidden, with their names from there, in order."""
    files = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return [(name.as_posix(), path) for name, path in files if not any(p.startswith(".") for p in name.parts)]


def _hash_ends(path: Path) -> str:
    size = path.stat().st_size
    if size <= HASHED_WHOLE:
        return sha256_file(path)
    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(HASHED_END))
        stream.seek(-HASHED_END, os.SEEK_END)
        digest.update(stream.read(HASHED_END))
    return digest.hexdigest()
