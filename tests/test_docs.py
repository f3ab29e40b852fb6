"""What the documentation names is there: files, functions, tests; and its worked example is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdsuite.methods.alignment import align, map_vocabulary

ROOT = Path(__file__).parents[1]
HOUSES = ("tests", "src/kdsuite", ".")  # of what is named without them
METHODS = ROOT / "docs" / "methods.md"
PAGE = METHODS.read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)))
PATHS = sorted(set(re.findall(r"(?<![\w/.-])(?:docs|benchmarks|configs|tests|src|notebooks)/[\w/.-]*\w", TEXT)))
FILES = sorted(set(re.findall(r"`(\w+/[\w/]+\.py)`", TEXT)))


def test_the_pages_name_files_and_tests_at_all() -> None:
    assert len(NAMED) > 100 and len(PATHS) > 20 and len(FILES) > 20


def is_there(file: str, name: str) -> bool:
    found = next((path for house in HOUSES if (path := ROOT / house / file).exists()), None)
    text = found.read_text(encoding="utf-8") if found else ""
    return bool(re.search(rf"^(?:(?:def|class) {name}\b|{name} = )", text, re.MULTILINE))


def test_functions_and_tests_named_in_these_pages_exist() -> None:
    assert [f"{file}::{name}" for file, name in NAMED if not is_there(file, name)] == []


def test_paths_and_files_named_in_these_pages_exist() -> None:
    assert [path for path in PATHS if not (ROOT / path).exists()] == []
    assert [file for file in FILES if not any((ROOT / house / file).exists() for house in HOUSES)] == []


def headings(page: Path) -> set[str]:
    """As links name them: in small letters, blanks as hyphens, without punctuation."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = [title.replace("`", "").lower() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_links_into_a_page_lead_to_a_heading() -> None:
    links = [
        (page, page.parent / to if to else page, at)
        for page in [*PAGES, *sorted((ROOT / "studies").rglob("*.md"))]
        for to, at in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 10 and [link for link in links if link[2] not in headings(link[1])] == []


def test_the_worked_example_is_what_the_real_tokenizers_do(real_chats) -> None:
    teacher, student = real_chats["qwen2.5"], real_chats["tinyllama"]
    answers = [chat.answer("John M. Grunsfeld") for chat in (teacher, student)]
    said, own = ([*answer.target_ids, chat.end_id] for answer, chat in zip(answers, (teacher, student), strict=True))
    spans, own_spans = (answer.spans for answer in answers)
    at = dict(align(spans, own_spans))
    to_student = map_vocabulary(teacher, student)

    def shown(chat, id: int) -> str:
        token = chat.tokenizer.convert_ids_to_tokens(id).replace("|", "\\|")
        return f"`{token}` {id}"

    for position, (id, (start, end)) in enumerate(zip(own, own_spans, strict=True)):
        cells = f"| {start}–{end} | {shown(student, id)} |"
        if position in at:
            other, (first, last) = said[at[position]], spans[at[position]]
            mapped = int(to_student.to_student[other])
            cells += f" {shown(teacher, other)} ({first}–{last}) | yes | {shown(student, mapped)}"
        assert cells in PAGE
    assert len(at) == 6 and "Six of eight" in PAGE


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_paths_named_in_the_configurations_exist(path: Path) -> None:
    named = re.findall(r"(?<![\w/.-])(?:src|docs|configs)/[\w/.-]*\w", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
