"""Rows of a person's own files: what was written is read, and what is broken is named by file, line and column."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from kdsuite.config import task_section
from kdsuite.config.files import load
from kdsuite.errors import DataError, KdsuiteError, SettingsError
from kdsuite.tasks.example import task_of
from kdsuite.tasks.sources import Row, files, table
from kdsuite.tasks.splits import make_splits, source_fingerprint

TWO = {"kind": "classification", "labels": ["a", "b"]}
SHORT, FREE = {"kind": "short_answer"}, {"kind": "generation"}
ROWS = "text,label\n" + "".join(f"word number {i},{'ab'[i % 2]}\n" for i in range(60))

MODELS = {"teacher": {"name": "offline-teacher"}, "students": {"S1": {"name": "offline-student"}}}


def of(path: Path | str, values: dict[str, Any]):
    """The splits of a task over one file, by way of a configuration file as a person writes it."""
    configuration = Path("configuration.yaml")
    configuration.write_text(json.dumps({"tasks": {"mine": {"source": str(path), **values}}, "models": MODELS}))
    section = load(configuration, env_file=None).tasks["mine"]
    return make_splits(task_of("mine", section))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- what was written is read

cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)
tables = st.lists(cells.filter(lambda c: c.strip() and c[0] != "\ufeff"), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.tuples(st.just(names), st.lists(st.lists(cells, min_size=len(names), max_size=len(names))))
)
patient = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def kept(names: list[str], rows: list[list[str]]) -> list[dict[str, str]]:
    return [dict(zip(names, row, strict=True)) for row in rows if any(cell.strip() for cell in row)]


@patient
@given(tables)
def test_csv_comes_back_as_it_was_written(here: Path, written: tuple[list[str], list[list[str]]]) -> None:
    names, rows = written
    text = io.StringIO(newline="")
    csv.writer(text).writerows([names, *rows])
    (here / "t.csv").write_bytes(text.getvalue().encode())
    if len(names) == 1 and ";" in names[0]:
        return  # told, as the separator is perhaps another
    assert [dict(row.cells) for row in table(here / "t.csv")] == kept(names, rows)


@patient
@given(
    st.lists(st.dictionaries(cells, st.none() | st.booleans() | st.integers() | cells | st.lists(cells)), min_size=1)
)
def test_json_lines_and_json_come_back_as_they_were_written(here: Path, rows: list[dict[str, Any]]) -> None:
    (here / "t.jsonl").write_text(lines(rows), encoding="utf-8")
    (here / "t.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [dict(row.cells) for row in table(here / "t.jsonl")] == rows
    assert [dict(row.cells) for row in table(here / "t.json")] == rows


@patient
@given(st.lists(st.tuples(cells, st.lists(cells)), min_size=1))
def test_parquet_comes_back_as_it_was_written(here: Path, rows: list[tuple[str, list[str]]]) -> None:
    said = [{"text": text, "answers": answers} for text, answers in rows]
    shape = pa.schema([("text", pa.string()), ("answers", pa.list_(pa.string()))])
    parquet.write_table(pa.Table.from_pylist(said, shape), here / "t.parquet")
    assert [dict(row.cells) for row in table(here / "t.parquet")] == said


@pytest.mark.parametrize("paragraphs", [[], ["a", "b"], [{"title": "a", "text": "b"}], "a", None])
def test_a_column_of_paragraphs_makes_no_article_of_a_row(here: Path, paragraphs: Any) -> None:
    rows = [{"question": "q?", "paragraphs": paragraphs, "answer": "x"}]
    for content in (rows, {"data": rows}):
        (here / "t.json").write_text(json.dumps(content))
        assert [dict(row.cells) for row in table(here / "t.json")] == rows


def test_separators_inside_a_line_do_not_end_it(here: Path) -> None:
    (here / "t.jsonl").write_text(lines([{"text": "a\u2028b\u0085c", "label": "a"}]), encoding="utf-8")
    assert [dict(row.cells) for row in table(here / "t.jsonl")] == [{"text": "a\u2028b\u0085c", "label": "a"}]


def test_a_quotation_mark_is_text_in_tsv_and_a_quote_in_csv(here: Path) -> None:
    (here / "t.tsv").write_text('text\tlabel\n"a joy\tb\n')
    (here / "t.csv").write_text('text,label\n"a, ""b""\nand c",b\n')
    assert [row.cells["text"] for row in table(here / "t.tsv")] == ['"a joy']
    assert [(row.cells["text"], row.place) for row in table(here / "t.csv")] == [
        ('a, "b"\nand c', f"{here / 't.csv'}, line 2")
    ]


def test_a_line_behind_a_cell_of_several_lines_is_named_as_an_editor_shows_it(here: Path) -> None:
    (here / "t.csv").write_text('text,label\n"one\ntwo\nthree",a\nfour\n')
    with pytest.raises(DataError, match="line 5: 1 columns instead of 2"):
        list(table(here / "t.csv"))


# --- which files are whose


@pytest.mark.parametrize("name", ["validation.csv", "valid.csv", "dev.csv", "test.csv"])
def test_a_folder_s_splits_are_found_by_name(here: Path, name: str) -> None:
    (here / "data").mkdir()
    (here / "data" / "train.csv").write_text(ROWS)
    (here / "data" / name).write_text("text,label\nheld out,a\n")
    splits = of("data", TWO)
    assert [e.inputs for e in splits["validation"]] == [{"text": "held out"}]
    assert len(splits["train"]) + len(splits["dev"]) == 60


def test_shards_and_patterns_are_read_in_order(here: Path) -> None:
    for number in (1, 0, 2):
        (here / f"part-{number}.jsonl").write_text(lines([{"text": f"{number}", "label": "a"}]))
        (here / f"train-0000{number}-of-00003.jsonl").write_text(lines([{"text": f"{number}", "label": "a"}]))
    by_pattern = task_section("mine", {**TWO, "source": "part-*.jsonl"})
    in_folder = task_section("mine", {**TWO, "source": "."})
    for section in (by_pattern, in_folder):
        examples = task_of("mine", section).load("train")
        assert [e.inputs["text"] for e in examples] == ["0", "1", "2"]
    assert files(by_pattern, "validation") == files(in_folder, "validation") == []


def test_a_missing_reported_split_is_carved_out_by_group(here: Path) -> None:
    rows = [{"text": f"{i} says it again", "label": "ab"[i % 2], "group": f"g{i // 3}"} for i in range(90)]
    (here / "t.jsonl").write_text(lines(rows))
    splits = of("t.jsonl", {**TWO, "dev_size": 9, "validation_size": 12, "examples": 3})
    assert {name: len(examples) for name, examples in splits.items()} == {
        "train": 66, "dev": 9, "validation": 12, "shots": 3
    }  # fmt: skip
    groups = {name: {e.group for e in splits[name]} for name in ("train", "dev", "validation")}
    assert not groups["validation"] & (groups["train"] | groups["dev"]) and not groups["dev"] & groups["train"]
    assert len({e.id for examples in splits.values() for e in examples}) == 90


def test_contents_identify_a_source_and_names_do_not(here: Path) -> None:
    (here / "one.csv").write_text(ROWS)
    (here / "two.csv").write_text(ROWS)
    one, two = (task_section("mine", {**TWO, "source": name}) for name in ("one.csv", "two.csv"))
    assert source_fingerprint(one) == source_fingerprint(two)
    (here / "two.csv").write_text(ROWS + "more,a\n")
    assert source_fingerprint(one) != source_fingerprint(two)


def test_a_saved_data_set_is_read(here: Path) -> None:
    import datasets

    labels = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    saved = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_list([{"text": f"{name} {i}", "label": i % 2} for i in range(40)], labels)
            for name in ("train", "test")
        }
    )
    saved.save_to_disk(str(here / "saved"))
    splits = of("saved", TWO)
    assert len(splits["validation"]) == 40 and {e.target for e in splits["train"]} == {"a", "b"}
    assert {e.target for e in of("saved", TWO | {"labels": ["yes", "no"]})["train"]} == {"yes", "no"}
    for other in (["b", "a"], ["c", "a", "b"], ["b", "c"]):
        with pytest.raises(DataError, match="saved, train: its labels are numbered a, b; write `labels` in this order"):
            of("saved", TWO | {"labels": other})


def test_the_file_names_of_a_preset_are_those_of_a_folder(here: Path) -> None:
    """A file as the source is what is trained on, whatever else lies beside it."""
    (here / "data").mkdir()
    for name in ("train", "mine", "dev"):
        (here / "data" / f"{name}.tsv").write_text(f"sentence\tlabel\nof {name}\t1\n")

    def loaded(split: str, **values: Any) -> list[str]:
        return [e.inputs["sentence"] for e in task_of("sst2", task_section("sst2", values)).load(split)]

    for source in ("data/mine.tsv", "data/mi*.tsv"):
        assert (loaded("train", source=source), loaded("validation", source=source)) == (["of mine"], ["of dev"])
    assert loaded("train", source="data/dev.tsv", splits={"train": "mine.tsv"}) == ["of mine"]
    (here / "data" / "dev.tsv").unlink()
    assert loaded("validation", source="data/mine.tsv") == [], "it is carved out of train"
    with pytest.raises(DataError, match=r"no data file data/dev\.tsv"):
        loaded("validation", source="data")
    with pytest.raises(DataError, match=r"no column 'costumer'; valid are .*columns\.group names it"):
        loaded("train", source="data", columns={"group": "costumer"})


def test_the_splits_of_a_data_set_are_named_and_not_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    made = {n: datasets.Dataset.from_list([{"sentence": n, "label": "positive"}]) for n in ("train", "test", "more")}

    def from_hub(source: str, subset: None, split: str, revision: None) -> Any:
        if split in made:
            return made[split]
        raise ValueError(f"Unknown split {split!r}.")

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    datasets.DatasetDict(made).save_to_disk(str(here / "saved"))
    for source in ("saved", "owner/name"):
        task = task_of("sst2", task_section("sst2", source=source, unlabeled="more"))
        found = [[e.inputs["sentence"] for e in task.load(split)] for split in ("train", "validation", "unlabeled")]
        assert found == [["train"], ["test"], ["more"]], "the preset's file names are those of a folder"
        for split in ("train", "validation"):
            named = task_section("sst2", source=source, splits={split: "part-*.tsv"})
            with pytest.raises(DataError, match=rf"{source} is a data set: splits.{split} names .* no file like part-"):
                task_of("sst2", named).load(split)
    with pytest.raises(DataError, match="saved: no split 'mor'; did you mean 'more'.; set unlabeled"):
        task_of("sst2", task_section("sst2", source="saved", unlabeled="mor")).load("unlabeled")


def test_a_tilde_is_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "t.csv").write_text(ROWS)
    assert len(of("~/t.csv", TWO)["train"]) > 40


# --- what is broken is named


def short(*more: Any) -> str:
    return lines([*({"question": f"q {i}?", "answer": "x y"} for i in range(50)), *more])


def sums(*more: Any) -> str:
    return lines([*({"prompt": f"q {i}?", "completion": f"so #### {i}"} for i in range(50)), *more])


def chat(*turns: tuple[str, str]) -> str:
    return lines([{"messages": [{"role": role, "content": text} for role, text in turns]} for _ in range(50)])


NAN = float("nan")
OFFSET = [{"text": "b", "answer_start": "2"}]
LABELLED: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("t.csv", ROWS.replace("text", "txt", 1), {}, r"t.csv, line 2: no column 'text'; there are txt, label \(columns"),
    ("t.csv", ROWS, {"columns": {"input": "tekst"}}, "line 2: no column 'tekst'; did you mean 'text'"),
    ("t.csv", ROWS, {"columns": {"target": "lable"}}, "line 2: no column 'lable'; did you mean 'label'"),
    ("t.csv", ROWS, {"columns": {"id": "nr"}}, "no column 'nr'; valid are text, label"),
    ("t.csv", ROWS, {"columns": {"references": "lables"}}, "no column 'lables'; did you mean 'label'"),
    ("t.csv", ROWS, {"prompt": "{% if text == 'x' %}{{ text }}{% endif %}"}, "line 2: the prompt comes out empty"),
    ("t.csv", ROWS, {"prompt": "{{ texts }}"}, "no column 'texts'; did you mean 'text'"),
    ("t.csv", ROWS + "w,\n", {}, "line 62: column 'label' is empty"),
    ("t.csv", ROWS + " ,a\n", {}, "line 62: column 'text' is empty"),
    ("t.csv", ROWS + "w,A\n", {}, "line 62: column 'label': 'A' is none of the labels; "),
    ("t.csv", ROWS + "w,-1\n", {}, "'-1' is none of the labels; the hub has -1"),
    ("t.csv", ROWS + "w,2\n", {}, "'2' is none of the labels"),
    ("t.csv", ROWS + "only\n", {}, "line 62: 1 columns instead of 2"),
    ("t.csv", ROWS + '"open,a\n', {}, "line 62: unexpected end of data"),
    ("t.csv", ROWS.replace(",", ";"), {}, "line 1: one column 'text;label'; separate columns by commas"),
    ("t.csv", "text,text,label\na,b,a\n", {}, "line 1: two columns 'text'"),
    ("t.csv", "id,text,label\n" + "".join(f"{i % 9},w {i},a\n" for i in range(40)), {}, "line 11: the id '0' is that"),
    ("t.csv", "", {}, "t.csv: the file is empty"),
    ("t.csv", "text,label\n", {}, "t.csv: no row in it"),
    ("t.csv", ROWS.encode() + b"caf\xe9,a\n", {}, "not UTF-8 at byte"),
    ("t.csv", b"PAR1" + bytes(40), {}, "t.csv: is a Parquet file, whatever its name says"),
    ("t.csv", b"PK\x03\x04" + bytes(40), {}, "t.csv: is a zip archive or a spreadsheet"),
    ("t.parquet", ROWS, {}, "t.parquet: cannot be read as Parquet"),
    ("t.jsonl", ROWS, {}, "t.jsonl, line 1: not valid JSON"),
    ("t.jsonl", "[1]\n", {}, "line 1: should be an object of columns, but is a list"),
    (
        "t.json",
        '{"text": "a", "label": "a"}\n{"text": "b"}\n',
        {},
        "line 2: not valid JSON .*name a file of JSON lines",
    ),
    ("t.json", '{"a": 1}', {}, "neither a list of objects"),
    ("t.json", "[" * 99_999, {}, r"t.json: not valid JSON \(nested too deeply\); download the file again"),
    ("t.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", {}, r"line 1: not valid JSON \(Exceeds the limit"),
    ("t.json", '{"data": [{"paragraphs": [1]}]}', {}, "article 'without title': a paragraph has .* not a int: 1"),
    (
        "t.json",
        '{"data": [{"title": "T", "paragraphs": [{"qas": [1]}]}]}',
        {},
        "article 'T': a paragraph has a context",
    ),
    ("t.json", '{"data": [{"title": "T", "paragraphs": [{"qas": 5}]}]}', {}, "article 'T': a paragraph has a context"),
    ("t.json", '{"data": [{"paragraphs": 5}]}', {}, "article 0 has no 'paragraphs'"),
    ("t.xls", ROWS, {}, "t.xls: what kind of file is this"),
    ("t.csv", ROWS, {"splits": {"validation": "test.csv"}}, "no data file test.csv; .*splits.validation"),
    ("t.csv", ROWS, {"splits": {"train": "x-*.csv"}}, "no data file x-"),
    ("t.csv", ROWS, {"examples": 55}, "split 'train' is empty"),
    ("t.csv", ROWS, {"train_size": 1000}, "train_size is 1000, but after the dev split only"),
    ("t.csv", ROWS, {"validation_size": 60}, "empty"),
]
OTHERS: list[tuple[str, dict[str, Any], str]] = [
    (short({"question": "w", "answer": None}), SHORT, "line 51: column 'answer' should be an answer .* is None"),
    (short({"question": "w", "answer": {"a": 1}}), SHORT, "line 51: column 'answer' should be an answer"),
    (short({"question": "w", "answer": NAN}), SHORT, "line 51: column 'answer' is empty"),
    (short({"question": "w", "answer": ["x", NAN]}), SHORT, r"line 51: the answer is empty \(column 'answer'\)"),
    (short({"question": NAN, "answer": "x"}), SHORT, "line 51: column 'question' is empty"),
    (sums({"prompt": "w", "completion": NAN}), FREE, "line 51: column 'completion' is empty"),
    (sums({"prompt": "w", "answer": "x", "references": ["y", NAN]}), FREE, "line 51: column 'references' is empty"),
    (short({"question": "w", "answer": []}), SHORT, "line 51: no answer in column 'answer'"),
    (short({"question": "w", "answer": [None]}), SHORT, "an answer should be a text, but is None"),
    (short({"question": "w", "answer": [{"at": 3}]}), SHORT, "an answer has no 'text'"),
    (short({"question": "w", "answer": {"text": ["a"], "answer_start": []}}), SHORT, "as many answer_start as text"),
    (short({"question": "w", "answer": " "}), SHORT, "column 'answer' is empty"),
    (short({"question": ["a"], "answer": "x"}), SHORT, "column 'question' should be a text, but is a list"),
    (short() + r'{"question": "cut \ud83d", "answer": "x"}' + "\n", SHORT, "line 51: a text has half a character"),
    (short({"question": None, "answer": "x"}), SHORT, "column 'question' is empty"),
    (short(), {**SHORT, "columns": {"context": "passage"}}, "no column 'passage'; valid are question, answer"),
    (short(), {**SHORT, "columns": {"references": "answers"}}, r"did you mean 'answer'\? \(columns.references"),
    (sums(), {**FREE, "columns": {"references": "prompts"}}, r"did you mean 'prompt'\? \(columns.references"),
    (sums({"prompt": "w", "answer": "x", "references": ["y", None]}), FREE, "line 51: column 'references' is empty"),
    (lines([{"question": "q", "context": "a b", "answers": OFFSET}]), SHORT, "answer_start should be a number"),
    (sums({"prompt": "w", "completion": "none"}), {**FREE, "extract": r"#### (\d+)"}, "`extract` finds nothing"),
    (sums(), {**FREE, "metrics": ["statistics:mean"]}, "metric mean raised TypeError"),
    (sums(), {**FREE, "metrics": ["operator:index"]}, "metric index raised"),
    (sums({"prompt": "w"}), FREE, "line 51: no column 'completion' or 'answer'"),
    (chat(("user", "u")), FREE, "should end with the user's and the assistant's turn"),
    (chat(("user", "u"), ("assistant", " ")), FREE, "a message needs a role"),
    (chat(("owner", "u"), ("assistant", "a")), FREE, "a message needs a role"),
    (lines([{"messages": [{"role": ["user"], "content": "u"}]}]), FREE, "a message needs a role"),
    (chat(("assistant", "a")), FREE, "should end with the user's and the assistant's turn"),
    (lines([{"messages": "hello"}]), FREE, "should be a list of messages"),
]
SECTIONS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "clasification", "labels": ["a", "b"]}, "no kind or preset of a task; did you mean 'classification'"),
    ({"kind": "classification"}, "'tasks.mine.labels' is missing"),
    ({**TWO, "labels": ["a", "a"]}, "labels: repeats a"),
    ({**TWO, "labels": ["a", " b"]}, "label ' b' needs a name without blanks"),
    ({**TWO, "labels_text": {"a": "b"}}, "two labels have the same text 'b'"),
    ({**TWO, "labels_text": {"a": "cafe\u0301", "b": "caf\u00e9"}}, "two labels have the same text"),
    ({**TWO, "positive": "c"}, "positive: unknown label 'c'"),
    ({**TWO, "colums": {}}, "unknown key 'tasks.mine.colums'; did you mean 'tasks.mine.columns'"),
    ({**TWO, "columns": {"inputs": "text"}}, "unknown key 'tasks.mine.columns.inputs'; did you mean"),
    ({**TWO, "prompt": "{{ text "}, "prompt: is no Jinja template: line 1"),
    ({**TWO, "prompt": "hello"}, "prompt: names no input"),
    ({**TWO, "prompt": "{{ texts }}", "columns": {"input": "text"}}, "no input 'texts'; did you mean 'text'"),
    (
        {**FREE, "prompt": "{{ context }} {{ q }}", "columns": {"input": "q"}},
        "no input 'context'; valid are q, inputs;",
    ),
    ({**FREE, "prompt": "{{ inputs }}", "columns": {"input": "inputs"}}, "`inputs` are all of them by name; give that"),
    ({**FREE, "columns": {"context": "passage"}}, "columns.context: only short_answer has a passage; name the column"),
    ({**TWO, "file": "absent.yaml"}, "file absent.yaml cannot be read"),
    ({**TWO, "prompt_file": "absent.txt"}, "prompt_file absent.txt cannot be read"),
    ({"preset": "sst2", "kind": "generation"}, "leave one of them out"),
    ({**FREE, "extract": r"#### \d+"}, "needs one group"),
    ({**FREE, "extract": r"#### (\d+"}, "is no regular expression"),
    ({**FREE, "metrics": ["rouge"]}, "unknown metric 'rouge'; did you mean 'rouge_l'"),
    ({**FREE, "metrics": ["absent_module:f"]}, "cannot be loaded: No module named"),
    ({**FREE, "metrics": ["math:pi"]}, "is no function"),
    (
        {**FREE, "metrics": ["statistics:mean", "chrf", "numpy:mean"]},
        "'statistics:mean' and 'numpy:mean' have one name",
    ),
]


@pytest.mark.parametrize(("name", "content", "values", "told"), LABELLED)
def test_a_broken_table_is_named_by_file_line_and_column(
    here: Path, name: str, content: str | bytes, values: dict[str, Any], told: str
) -> None:
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=told) as caught:
        of(name, TWO | values)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "values", "told"), OTHERS)
def test_a_broken_record_is_named_by_file_line_and_column(
    here: Path, content: str, values: dict[str, Any], told: str
) -> None:
    (here / "t.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=told) as caught:
        of("t.jsonl", values)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "told"), SECTIONS)
def test_a_broken_section_is_told_before_any_data_are_read(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        of("absent.csv", values)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_an_own_metric_that_is_not_a_number_from_0_to_1_is_told_before_any_work(here: Path) -> None:
    (here / "my_metric_of_this_test.py").write_text("def nan(said, right):\n    return float('nan')\n")
    (here / "t.jsonl").write_text(sums())
    with pytest.raises(KdsuiteError, match="metric nan gave nan"):
        of("t.jsonl", {**FREE, "metrics": ["my_metric_of_this_test:nan"]})


def test_a_number_is_written_as_people_write_it() -> None:
    row = Row("t", {"a": 5, "b": 5.0, "c": True, "d": 0.25})
    assert [row.text(column) for column in "abcd"] == ["5", "5", "true", "0.25"]


def test_a_cell_that_is_no_number_is_empty(here: Path) -> None:
    """NaN is how tables of numbers write that nothing is there."""
    rows = [
        {"text": f"t {i}", "label": "a", "id": i if i % 2 else NAN, "group": NAN, "references": NAN} for i in range(4)
    ]
    (here / "t.jsonl").write_text(lines(rows))
    parquet.write_table(pa.Table.from_pylist([row | {"label": 0.0} for row in rows]), here / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        examples = task_of("mine", task_section("mine", {**TWO, "source": name})).load("train")
        assert [e.id for e in examples] == ["mine-train-0", "1", "mine-train-2", "3"]
        assert [e.group for e in examples] == [f"t {i}" for i in range(4)]
        assert {e.references for e in examples} == {("a",)}
    row = {"question": "q", "context": "x y", "answers": [{"text": "y", "answer_start": NAN}]}
    (here / "t.jsonl").write_text(lines([row]))
    [example] = task_of("mine", task_section("mine", {**SHORT, "source": "t.jsonl"})).load("train")
    assert example.answer_start == 2
