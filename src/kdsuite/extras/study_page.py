"""The pages of studies: what of a README is written from facts, and the table of all studies."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.errors import DataError
from kdsuite.report import words
from kdsuite.report.analysis import Analysis, losses
from kdsuite.report.load import BASELINE
from kdsuite.store.files import atomic_write_text, read_json

BEGIN = "<!-- from here on written by `kdsuite study save` -->"
END = "<!-- to here -->"
BLOCK = re.compile(rf"^{re.escape(BEGIN)}$.*?^{re.escape(END)}$", re.DOTALL | re.MULTILINE)
FORMAT, FACTS = 1, "study.json"
MAIN, TESTS, FRACTIONS = (f"{n}.csv" for n in ("table_4_1_main_results", "table_4_3_significance", "data_fractions"))

Row = dict[str, str]


def read_facts(folder: Path) -> dict[str, Any]:
    """study.json. DataError if it is missing, damaged or of another version."""
    try:
        about = read_json(folder / FACTS)
    except FileNotFoundError:
        raise DataError(f"{folder}: no study here ({FACTS} is missing); `kdsuite study save` writes one") from None
    except ValueError as error:
        raise DataError(str(error)) from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{folder / FACTS}: not a study of this version of kdsuite; take the one that it was saved by")
    return about


def write(path: Path, name: str, about: Mapping[str, Any], texts: Mapping[str, str], analysis: Analysis) -> None:
    """A study's README: what is between the marks anew, what others wrote as it is; all of it where there is none."""
    if path.exists():
        _renew(path, _facts(about, texts))
        return
    title = re.sub(r"^\d{4}-\d{2}-\d{2}-", "", name).replace("-", " ")
    finding = [words.headline(task) for task in analysis.tasks]
    parts = [f"# {title}", *finding, _facts(about, texts), "## Limits", "\n".join(_limits(about, texts, analysis))]
    atomic_write_text(path, "\n\n".join(parts) + "\n")


def differences(path: Path, about: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """What is wrong with the part of a README that is written here."""
    found = BLOCK.search(path.read_text("utf-8")) if path.exists() else None
    if found is None:
        return [f"{path.name}: {'no part between the marks' if path.exists() else 'missing'}"]
    return (
        []
        if found[0] == _facts(about, texts)
        else [f"{path.name}: the part between the marks is not what is recomputed"]
    )


def renew_overview(path: Path) -> None:
    """Write the table of the studies beside a page between its marks, if there is such a page."""
    if path.exists():
        _renew(path, overview(path.parent))


def _renew(path: Path, block: str) -> None:
    atomic_write_text(path, BLOCK.sub(lambda found: block, path.read_text("utf-8")))


def overview(folder: Path) -> str:
    """The table of all studies in a folder, between marks: a row per trained method other than B0."""
    heads = "study|task|teacher → student|learned from|zero-shot|teacher|B0|method|score|gain over B0|verdict|seeds"
    lines = []
    for path in sorted(folder.glob(f"*/{FACTS}")):
        about, study = read_facts(path.parent), path.parent
        rows = list(_rows({f.name: f.read_text("utf-8") for f in (study / "summary").glob("*.csv")}, about))
        score = {(r["task"], r["student"], r["method"], r["examples"]): _number(r["mean"]) for r in rows}
        for row in rows:
            if row["method"] in (TEACHER, ZERO_SHOT, BASELINE):
                continue
            task, student, examples = row["task"], row["student"], row["examples"]
            others = [(task, student, ZERO_SHOT, ""), (task, "", TEACHER, ""), (task, student, BASELINE, examples)]
            pair = " → ".join(Path(about["models"][role]).name for role in (TEACHER, student))
            cells = [
                f"[{study.name}]({study.name})",
                f"{about['titles'][task]} {words.metric_name(row['metric'])}",
                pair,
            ]
            cells += [examples, *(score.get(key, "–") for key in others), row["method"], _number(row["mean"])]
            lines.append([*cells, _gain(row), row["verdict"], row["n_seeds"]])
    return f"{BEGIN}\n\n{_table(heads.split('|'), lines) if lines else 'None yet.'}\n\n{END}"


def _facts(about: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Between marks: the table of results, what was run on what, and how it is repeated and verified."""
    heads = "task|student|learned from|method|seeds|score|interval|gain over B0|verdict".split("|")
    lines = [
        [
            f"{about['titles'][row['task']]} {words.metric_name(row['metric'])}",
            row["student"],
            row["examples"],
            " ".join(filter(None, (row["method"], row["hyperparameters"]))),
            row["n_seeds"],
            _number(row["mean"]),
            _interval(row, "ci"),
            _gain(row),
            row["verdict"],
        ]
        for row in _rows(texts, about)
    ]
    machines = ["- machine: " + ", ".join(_machine(machine)) for machine in about["machines"] if any(machine.values())]
    folder = about["command"].partition(" --config ")[2].partition("/config.yaml")[0]
    parts = [
        BEGIN,
        "## Results",
        _table(heads, lines),
        f"Scores are percent on the reported split, with {about['level']} intervals over seeds and examples (over "
        "examples alone with fewer than three seeds); gains are points, with intervals that are Holm-corrected as the "
        "verdicts are (docs/statistics.md). All tables: `summary/`; all predictions: `results.tar.xz`.",
        "## What was run",
        "\n".join(
            [
                *_models(about),
                *_data(about),
                f"- seeds: {', '.join(map(str, about['seeds']))}",
                *machines,
                _spent(about),
            ]
        ),
        "## Again",
        f"```bash\n{about['command']}\nkdsuite study verify {folder}   # the tables, from the saved predictions\n```",
        END,
    ]
    return "\n\n".join(parts)


def _models(about: Mapping[str, Any]) -> Iterator[str]:
    for role in sorted(about["models"], key=lambda role: role != TEACHER):
        size = about["parameters"].get(role)
        yield f"- {role}: `{about['models'][role]}`{f', {size:,} parameters' if size else ''}"


def _data(about: Mapping[str, Any]) -> Iterator[str]:
    for task, sizes in about["sizes"].items():
        told = ", ".join(f"{sizes[split]:,} {split}" for split in ("train", "dev", "validation") if split in sizes)
        known = {key: value for key, value in about["data"][task].items() if value}
        yield "; ".join(
            [
                f"- {about['titles'][task]}: {told}",
                *(f"{key.replace('_', ' ')} {value}" for key, value in known.items()),
            ]
        )


def _machine(machine: Mapping[str, Any]) -> Iterator[str]:
    """What runs were computed with, as short phrases."""
    name = machine.get("device_name") or machine.get("cpu")
    yield f"{machine.get('device')}" + (f" ({name})" if name else "")
    if machine.get("cpu_cores"):
        yield f"{machine['cpu_cores']} cores, {machine['memory_mb'] / 1000:.0f} GB"
    yield str(machine.get("dtype"))
    libraries = machine.get("libraries") or {}
    yield from (f"{name} {libraries[name]}" for name in ("torch", "transformers") if name in libraries)


def _spent(about: Mapping[str, Any]) -> str:
    code = ", ".join(about["code"])
    return f"- {len(about['runs'])} runs, {words.lasting(about['seconds'])} of training and evaluation; kdsuite {code}"


def _limits(about: Mapping[str, Any], texts: Mapping[str, str], analysis: Analysis) -> Iterator[str]:
    """What the numbers themselves say against a study, a line each; more is for who writes it up."""
    yield f"- One set of models and data, {words.counted(len(about['seeds']), 'seed')}: nothing is known of others."
    for row in _read(texts, TESTS):
        if row["minimum_detectable"][:1].isdigit():
            yield (
                f"- {about['titles'][row['task']]}, {row['student']} {row['comparison']}: a gain below "
                f"{_number(row['minimum_detectable'])} points would often not be seen."
            )
    yield from (f"- {doubt}" for doubt in words.doubts(analysis.tasks))
    yield from (f"- {lost}" for lost in losses(analysis.runs))


def _rows(texts: Mapping[str, str], about: Mapping[str, Any]) -> Iterator[Row]:
    """Table 4.1 with the gains of table 4.3; where a task has fractions, each of them instead of the whole alone."""
    parts, tests = list(_read(texts, FRACTIONS)), {}
    for row in _read(texts, TESTS):
        tests[row["task"], row["student"], row["comparison"]] = row
    told = set()
    for row in _read(texts, MAIN):
        task, student, method = row["task"], row["student"], row["method"]
        none = {"difference": "", "ci_holm_low": "", "ci_holm_high": "", "verdict": "", "examples": ""}
        if method in (TEACHER, ZERO_SHOT):
            yield row | none
        elif mine := [part for part in parts if (part["task"], part["student"]) == (task, student)]:
            if (task, student) not in told:
                yield from ({**part, "examples": part["n_train"]} for part in mine)
            told.add((task, student))
        else:
            test = tests.get((task, student, f"{method} vs {BASELINE}"), {})
            gain = {key: test.get(key, "") for key in none}
            yield row | gain | {"examples": str(about["sizes"][task].get("train", ""))}


def _read(texts: Mapping[str, str], name: str) -> Iterator[Row]:
    return csv.DictReader(io.StringIO(texts.get(name, "")))


def _number(text: str) -> str:
    """A table's number with one decimal; a word as it is."""
    try:
        return words.minus(words.number(float(text), 1))
    except ValueError:
        return text


def _interval(row: Row, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{_number(low)} to {_number(high)}" if low[-1:].isdigit() else ""


def _gain(row: Row) -> str:
    """The difference to B0 with its interval, where it has one."""
    try:
        gain = words.signed(float(row["difference"]))
    except ValueError:
        return row["difference"] if row["method"] not in (TEACHER, ZERO_SHOT, BASELINE) else ""
    interval = _interval(row, "ci_holm")
    return f"{gain} ({interval})" if interval else gain


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells))
