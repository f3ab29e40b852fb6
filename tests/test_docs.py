"""What the documentation names is there: files, functions, tests; and its worked example is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdsuite.methods.alignment import align, map_vocabulary

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "docs" / "methods.md"
PAGE = METHODS.read_text(encoding="utf-8")
TABLES = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("models.md", "scoring.md", "splits.md")]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", "".join([PAGE, *TABLES]))))
PATHS = sorted(set(re.findall(r"(?<![\w/-])(?:docs|benchmarks|configs)/[\w/.]*\w", PAGE)))


def test_the_methods_page_names_files_and_tests_at_all() -> None:
    assert len(NAMED) > 40 and len(PATHS) >= 2


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_functions_and_tests_named_in_these_pages_exist(file: str, name: str) -> None:
    house = ROOT / ("tests" if Path(file).name.startswith("test_") else "src/kdsuite")
    text = (house / file).read_text(encoding="utf-8")
    assert re.search(rf"^(?:(?:def|class) {name}\b|{name} = )", text, re.MULTILINE)


@pytest.mark.parametrize("path", PATHS)
def test_paths_named_in_the_methods_page_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


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
