"""Rows of a task's splits: from files of tables, from the hub, or generated; each knows where it stands."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from kdsuite.config import GENERATED, SUFFIXES, TaskSettings, is_file_name, nearest
from kdsuite.errors import DataError, SettingsError, first_line

GENERATED_SIZES = {"train_size": 1000, "dev_size": 200, "validation_size": 300}
VALIDATION = ("validation", "valid", "val", "dev", "test")  # what the reported split is called, the first that is there
FOREIGN = {b"PAR1": "a Parquet file", b"PK\x03\x04": "a zip archive or a spreadsheet", b"\x1f\x8b": "compressed"}


@dataclass(frozen=True)
class Row:
    """A record of a table: its cells by column, and where it stands."""

    place: str
    cells: Mapping[str, Any]

    def cell(self, column: str, key: str = "") -> Any:
        """What stands in a column. DataError, naming the nearest, and the `key` of `columns` that names it, if there is
        none of that name."""
        if column not in self.cells:
            named = f" (columns.{key} names it)" if key else ""
            raise self.error(f"no column {column!r}{nearest(column, self.cells)}{named}")
        return self.cells[column]

    def text(self, column: str, key: str = "") -> str:
        """The text of a cell, numbers as they are written. DataError if it is empty or of another type."""
        value = self.cell(column, key)
        if is_empty(value):
            raise self.error(f"column {column!r} is empty; mend the row, or take it out")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, int | float):
            value = str(value)
        if not isinstance(value, str):
            raise self.error(f"column {column!r} should be a text, but is {_shown(value)}")
        return value

    def items(self, column: str) -> list[Row]:
        """A row for each item of a list, or for what else a cell holds; none if that is empty."""
        said = self.cell(column)
        items = said if isinstance(said, list | tuple) else [] if is_empty(said) else [said]
        return [Row(self.place, {column: item}) for item in items]

    def error(self, problem: str) -> DataError:
        return DataError(f"{self.place}: {problem}")


def is_empty(value: Any) -> bool:
    """Whether nothing stands in a cell: null, blanks, or NaN, as tables of numbers write it."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_whole(text: str) -> bool:
    """Whether all of it are characters. JSON can hold one half of a pair of surrogates, as of a text that was cut; no
    file of text can."""
    return re.search("[\ud800-\udfff]", text) is None


def _shown(value: Any) -> str:
    text = repr(value)
    return f"a {type(value).__name__}: {text if len(text) < 60 else text[:57] + '…'}"


def rows(settings: TaskSettings, split: str) -> list[Row]:
    """The rows of `train`, `validation` or `unlabeled`, in the source's order; none of what is not there.

    DataError says which file, line or split cannot be had or read.
    """
    saved = (Path(settings.source) / "dataset_dict.json").exists()
    if split == "unlabeled":
        if settings.unlabeled is None:
            return []
        if is_file_name(settings.unlabeled) or Path(settings.unlabeled).exists():
            return [row for path in _matching(Path(settings.unlabeled), "unlabeled") for row in table(path)]
    elif settings.source == GENERATED:
        return _generated(settings, split)
    elif is_local(settings) and not saved:
        found = files(settings, split)
        there = [row for path in found for row in table(path)]
        if found and not there:
            raise DataError(f"{found[0]}: no row in it; give the task more data")
        return there
    return _saved(settings, split) if saved else _from_hub(settings, split)


def is_local(settings: TaskSettings) -> bool:
    """Whether a task's data are files (that may not be there) rather than generated or on the hub."""
    source = settings.source
    return source != GENERATED and (Path(source).exists() or is_file_name(source) or source.count("/") > 1)


def files(settings: TaskSettings, split: str) -> list[Path]:
    """The files of a split, in order; none of a reported split that nothing names.

    Those that a preset names are files of a folder: a source that is a file is the training data itself.
    """
    source, said, own = Path(settings.source), getattr(settings.splits, split), settings.own("splits", split)
    is_folder = source.is_dir() or not (source.exists() or source.suffix.lower() in SUFFIXES)
    folder = source if is_folder else source.parent
    if not folder.is_dir():
        raise DataError(f"no data folder {settings.source}; give a file, a folder or a hub id as source")
    if split == "train" and not (is_folder or own):
        return _matching(source, "source")
    if said and (is_folder or own or (folder / said).exists()):
        return _matching(folder / Path(said).expanduser(), f"splits.{split}")
    if not is_folder:
        return []
    for name in ("train",) if split == "train" else VALIDATION:
        for more in ("", "[-_.]*"):  # of both `train.csv` and `train-00000-of-00002.parquet`
            for suffix in SUFFIXES:
                if found := sorted(folder.glob(f"{name}{more}{suffix}")):
                    return found
    if split == "train":
        raise DataError(f"{folder}: no file train.csv, .tsv, .json, .jsonl or .parquet; name it in splits.train")
    return []


def matching(pattern: Path) -> list[Path]:
    """The file or folder of that name, or what matches a pattern, in order."""
    beginning = pattern.anchor or "."
    return [pattern] if pattern.exists() else sorted(Path(beginning).glob(str(pattern.relative_to(beginning))))


def _matching(pattern: Path, key: str) -> list[Path]:
    if not (found := matching(pattern)):
        raise DataError(f"no data file {pattern}; set the task's source and splits ({key} names it)")
    if folders := [path for path in found if path.is_dir()]:
        inside = sorted(p for path in folders for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        found = [path for path in found if not path.is_dir()] + inside
        if not inside:
            raise DataError(f"{folders[0]}: no file of {', '.join(SUFFIXES)} is in this folder ({key} names it)")
    return found


def content_fingerprints(settings: TaskSettings) -> list[Any]:
    """What identifies data that are files: the hash of each."""
    source = Path(settings.source)
    if (source / "dataset_dict.json").exists():
        found = sorted(path for path in source.rglob("*") if path.is_file())
    else:
        found = [p for split in ("train", "validation") for p in files(settings, split)]
    return [hashlib.sha256(read_bytes(path)).hexdigest() for path in found]


def read_bytes(path: Path) -> bytes:
    """A data file's content. DataError says which file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """A data file's text, line ends as `\\n`. DataError also where it is empty or no UTF-8."""
    content = read_bytes(path)
    for magic, what in FOREIGN.items():
        if content.startswith(magic):
            raise DataError(f"{path}: is {what}, whatever its name says; save it as text, or name it as what it is")
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; download it again")
    return text


def table(path: Path) -> Iterator[Row]:
    """The rows of a file by its suffix. DataError names file and line."""
    match path.suffix.lower():
        case ".csv" | ".tsv" as suffix:
            yield from _separated(path, suffix)
        case ".jsonl" | ".ndjson":
            for number, line in enumerate(read_text(path).split("\n"), start=1):
                if line.strip():
                    yield _object(f"{path}, line {number}", _json(path, line, number))
        case ".json":
            yield from _records(path)
        case ".parquet":
            yield from _parquet(path)
        case _:
            raise DataError(f"{path}: what kind of file is this? Known are {', '.join(SUFFIXES)}")


def _separated(path: Path, suffix: str) -> Iterator[Row]:
    """CSV with quotes (RFC 4180), or TSV, where a quotation mark is text."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = read_text(path)
    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **(tabs if suffix == ".tsv" else {}))
    number = 1
    try:
        columns = next(reader)
        if repeated := sorted({name for name in columns if columns.count(name) > 1}):
            raise DataError(f"{path}, line 1: two columns {repeated[0]!r}; rename one")
        if len(columns) == 1 and columns[0].count(";" if suffix == ".csv" else ",") > 0:
            wanted = "commas" if suffix == ".csv" else "tabs"
            raise DataError(f"{path}, line 1: one column {columns[0]!r}; separate columns by {wanted}")
        number = reader.line_num + 1
        for cells in reader:
            if len(cells) != len(columns) and any(cell.strip() for cell in cells):
                raise DataError(f"{path}, line {number}: {len(cells)} columns instead of {len(columns)}; mend the row")
            if any(cell.strip() for cell in cells):
                yield Row(f"{path}, line {number}", dict(zip(columns, cells, strict=True)))
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {number}: {error}; mend the row") from None


def _json(path: Path, text: str, line: int | None = None) -> Any:
    """What a file holds, or a line of it. DataError for what is no JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also of a number of thousands of digits
        at = line or getattr(error, "lineno", None)
        problem = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", f"{error}")
        advice = "name a file of JSON lines .jsonl" if problem == "Extra data" else "download the file again"
        place = f"{path}, line {at}" if at else path
        raise DataError(f"{place}: not valid JSON ({problem}); {'mend it' if line else advice}") from None
    if "\\u" in text and not is_whole(json.dumps(value, ensure_ascii=False)):
        place = f"{path}, line {line}" if line else path
        raise DataError(f"{place}: a text has half a character (a surrogate without its other); mend it")
    return value


def _object(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: should be an object of columns, but is {_shown(value)}")
    return Row(place, value)


def _records(path: Path) -> Iterator[Row]:
    """A list of objects, by itself or under `data`; or SQuAD's articles, of which each question is a row."""
    content = _json(path, read_text(path))
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise DataError(f"{path}: neither a list of objects nor an object with a list 'data'")
    for number, record in enumerate(records):
        if _is_article(record):
            yield from _questions(path, record)
        elif isinstance(content, dict) and isinstance(record, dict) and record.keys() <= {"title", "paragraphs"}:
            raise DataError(f"{path}: article {number} has no 'paragraphs'; SQuAD v1.1 files have it")
        else:
            yield _object(f"{path}, record {number + 1}", record)


def _is_article(record: Any) -> bool:
    """Whether a record is an article of SQuAD: other data sets have a column `paragraphs`, too."""
    paragraphs = record.get("paragraphs") if isinstance(record, dict) else None
    if not isinstance(paragraphs, list):
        return False
    return record.keys() <= {"title", "paragraphs"} or any(isinstance(p, dict) and "qas" in p for p in paragraphs)


def _questions(path: Path, article: Mapping[str, Any]) -> Iterator[Row]:
    for paragraph in article["paragraphs"]:
        questions = paragraph.get("qas", []) if isinstance(paragraph, dict) else None
        if not isinstance(questions, list) or not all(isinstance(question, dict) for question in questions):
            where = f"{path}: article {article.get('title', 'without title')!r}"
            raise DataError(
                f"{where}: a paragraph has a context and a list 'qas' of questions, not {_shown(paragraph)}"
            )
        for question in questions:
            place = f"{path}: question {question.get('id', 'without id')}"
            row = {"title": article.get("title"), "context": paragraph.get("context"), **question}
            yield Row(place, {key: value for key, value in row.items() if value is not None or key == "title"})


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        batches = ParquetFile(path).iter_batches()
        yield from _numbered(str(path), (cells for batch in batches for cells in batch.to_pylist()))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


def _saved(settings: TaskSettings, split: str) -> list[Row]:
    """Of a folder that `datasets` wrote (`save_to_disk`)."""
    import datasets

    wanted, key = _wanted(settings, split), split if split == "unlabeled" else f"splits.{split}"
    try:
        there = datasets.load_from_disk(settings.source)
    except (OSError, ValueError) as error:
        raise DataError(f"{settings.source}: cannot be read as a saved data set ({first_line(error)})") from None
    if name := next((name for name in wanted if name in there), None):
        return _of_data_set(settings, name, there[name])
    if len(wanted) == 1:
        raise DataError(f"{settings.source}: no split {wanted[0]!r}{nearest(wanted[0], there)}; set {key}")
    return []


def _wanted(settings: TaskSettings, split: str) -> tuple[str, ...]:
    """What a split of a data set may be called, the first that is there; a preset's own names are those of files.

    DataError where a person names files, too.
    """
    said = settings.unlabeled if split == "unlabeled" else getattr(settings.splits, split)
    if said and not is_file_name(said):
        return (said,)
    if settings.own("splits", split):
        raise DataError(f"{settings.source} is a data set: splits.{split} names a split of it, and no file like {said}")
    return ("train",) if split == "train" else VALIDATION


def _of_data_set(settings: TaskSettings, split: str, found: Any) -> list[Row]:
    """The rows of a split. DataError where it numbers the labels of the task otherwise: places would be of others."""
    place, labels = f"{settings.source}, {split}", getattr(settings, "labels", ())
    names = getattr(found.features.get(settings.columns.target or "label"), "names", None) or []
    if any(name in labels and labels.index(name) != at for at, name in enumerate(names)):
        raise DataError(f"{place}: its labels are numbered {', '.join(names)}; write `labels` in this order")
    return _numbered(place, found)


def _numbered(place: str, records: Iterable[Any]) -> list[Row]:
    return [Row(f"{place}, row {number}", record) for number, record in enumerate(records, start=1)]


def _from_hub(settings: TaskSettings, split: str) -> list[Row]:
    wanted = _wanted(settings, split)
    for name in wanted:
        try:
            return _loaded(settings, name)
        except DataError as error:
            if len(wanted) == 1 or "nknown split" not in str(error):
                raise
    return []


def _loaded(settings: TaskSettings, split: str) -> list[Row]:
    """The rows of a split of a data set on the hub, by id and revision.

    DataError says what could not be had and how to do without the hub.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi

    from kdsuite.runtime import hub

    subset = settings.subset or (settings.preset if "glue" in settings.source else None)  # GLUE's are named like these
    try:
        found = datasets.load_dataset(settings.source, subset, split=split, revision=settings.revision)
    except (OSError, ValueError, RuntimeError, hub.HTTP_ERROR) as error:
        reported: BaseException = error
        if isinstance(error, DatasetNotFoundError):  # all that the library knows; the hub knows why
            try:
                HfApi().auth_check(settings.source, repo_type="dataset")
            except (OSError, ValueError, hub.HTTP_ERROR) as refusal:
                reported = refusal
        reason, advice = hub.explain(reported) or (first_line(error), "check the name")
        raise DataError(
            f"data set {settings.source!r} is no folder here and cannot be had from the hub: {reason}; {advice}, "
            "or point `source` at a folder with the official files"
        ) from None
    return _of_data_set(settings, split, found)


def _generated(settings: TaskSettings, split: str) -> list[Row]:
    """The rows of a generated corpus (a function of `extras.offline.corpora`), those of `train`
    (with room for dev and for the teacher's own examples) or `validation`.

    One generation feeds both splits: its first rows are the reported split, the rest is for training, cut
    where a passage ends, so that no text is in both. Targets are what the annotator said.
    """
    if settings.corpus is None:
        raise SettingsError("a task without a preset needs a source: a file, a folder or a hub id")
    if settings.revision is not None:
        raise SettingsError("generated data has no revision; remove the key or name a hub data set as source")
    held_out = settings.validation_size or GENERATED_SIZES["validation_size"]
    train = max(settings.train_size or GENERATED_SIZES["train_size"], settings.teacher_training.train_size or 0)
    slack = 8  # questions of the passage that straddles a cut
    total = held_out + train + (settings.dev_size or GENERATED_SIZES["dev_size"]) + 3 * slack + settings.examples
    generate = getattr(import_module("kdsuite.extras.offline.corpora"), settings.corpus)
    made = generate(total, settings.sample_seed)
    cut = held_out
    while cut < len(made) and made[cut].get("context", cut) == made[cut - 1].get("context"):
        cut += 1
    return _numbered(f"{settings.corpus}, {split}", map(_as_said, made[:cut] if split == "validation" else made[cut:]))


def _as_said(made: Mapping[str, Any]) -> dict[str, Any]:
    """A generated record as one of official files, with what is right as its reference."""
    if "context" not in made:
        return {"sentence": made["sentence"], "label": made["said"], "references": [made["label"]]}
    answers = {"text": [made["said"]], "answer_start": [made["said_start"]]}
    asked = {"context": made["context"], "question": made["question"]}
    return {**asked, "answers": answers, "references": [made["answer"]]}
