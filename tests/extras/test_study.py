"""What is saved of a results folder is enough to recompute every digit of it, small, and of no particular machine."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdsuite import cli
from kdsuite.config import Settings
from kdsuite.config.files import load as load_settings
from kdsuite.errors import DataError, KdsuiteError, SettingsError
from kdsuite.extras import study, study_page
from kdsuite.report.analysis import analyse
from kdsuite.report.build import build_report, summarised
from kdsuite.report.load import load
from kdsuite.report.tables import all_tables
from kdsuite.store.files import atomic_write_record, read_json, sha256_file
from report.synthetic import Study, write_results

pytestmark = pytest.mark.slow

TABLE = "summary/table_4_1_main_results.csv"
ASKED = {
    "seeds": [42, 123, 456],
    "methods": ["B0", "KD1"],
    "tasks": {"sst2": {"source": "./data/sst2", "training": {"learning_rate": 0.003}}},
    "models": {"teacher": {"name": "./models/big"}, "students": {"S1": {"name": "./models/small"}}},
    "kd1": {"temperatures": [2.0], "alphas": [0.5]},
    "report": {"permutations": 100},
}
PRETENDED = Study(
    tasks=("sst2",), n=60, grid=((2.0, 0.5),), skills={"teacher": 0.9, "zero-shot": 0.5, "B0": 0.7, "KD1": 0.8}
)


def planned(results: Path, asked: dict[str, Any]) -> Settings:
    """The plan of a results folder gets these settings, as a run of them would have written."""
    settings = Settings.model_validate(asked)
    plan = read_json(results / "raw_runs" / "plan.json")
    atomic_write_record(results / "raw_runs" / "plan.json", plan | {"settings": settings.model_dump(mode="json")})
    return settings


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with its report; who changes it copies it first."""
    results = write_results(tmp_path_factory.mktemp("reported"), PRETENDED)
    (results / "models" / "B0_sst2_S1_seed42").mkdir(parents=True)
    (results / "models" / "B0_sst2_S1_seed42" / "model.safetensors").write_bytes(b"weights")
    build_report(results, planned(results, ASKED).report)
    return results


@pytest.fixture(scope="module")
def saved(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "2026-01-02-made-up"
    study.save(folder, reported)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def test_a_study_is_recomputed_from_what_was_saved_and_says_so(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "verify", str(saved)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "14 tables and texts from 8 runs: equal in every digit",
        "8 planned runs: config.yaml asks for the same ones",
    ]
    assert err == ""


def test_tables_predictions_and_settings_are_kept_but_neither_weights_nor_texts_of_examples(saved: Path) -> None:
    with tarfile.open(saved / "results.tar.xz") as archive:
        names = set(archive.getnames())
        examples = archive.extractfile("processed_data/sst2/validation.jsonl")
        assert examples and json.loads(examples.readline())["inputs"] == {}
    assert {"raw_runs/plan.json", "raw_runs/KD1_sst2_S1_T2_a0.5_seed42/predictions.jsonl"} <= names
    assert not any("models" in name or "safetensors" in name for name in names)
    assert {p.name for p in saved.iterdir()} == {
        *("README.md", "config.yaml", "study.json", "results.tar.xz", "report.html", "summary", "figures")
    }


def test_the_configuration_is_short_and_asks_for_the_same(saved: Path) -> None:
    text = (saved / "config.yaml").read_text()
    assert load_settings(saved / "config.yaml", env_file=None) == Settings.model_validate(ASKED)
    assert "seeds: [42, 123, 456]" in text and "learning_rate: 0.003" in text
    assert len(text.splitlines()) < 20 and "weight_decay" not in text


def test_a_first_readme_tells_finding_numbers_limits_and_how_to_repeat(saved: Path) -> None:
    page = (saved / "README.md").read_text()
    assert page.startswith("# made up\n\nSST-2: ")
    row = next(line for line in page.splitlines() if "| KD1 T=2 α=0.5 | 3 |" in line)
    table = (saved / TABLE).read_text().splitlines()
    mean = next(line for line in table if ",KD1," in line).split(",")[7]
    assert f"| {float(mean):.1f} |" in row and "points" not in row and " to " in row
    assert "- teacher: `./models/big`, 50,000,000 parameters" in page and "source ./data/sst2" in page
    assert "kdsuite run --config studies/2026-01-02-made-up/config.yaml --results " in page
    assert " results-2026-01-02-made-up --executor processes\n" in page
    assert "## Limits" in page and "would often not be seen" in page


def altered(name: str, old: str, new: str) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return alter


def raise_a_score(folder: Path) -> None:
    lines = (folder / TABLE).read_text().splitlines()
    cells = lines[-1].split(",")
    lines[-1] = ",".join([*cells[:7], f"{float(cells[7]) + 0.0001:.4f}", *cells[8:]])
    (folder / TABLE).write_text("\n".join(lines) + "\n")


def cut(folder: Path) -> None:
    path = folder / "results.tar.xz"
    path.write_bytes(path.read_bytes()[:-100])


WHOLE = [  # the archive is: what is recomputed is compared
    (raise_a_score, f"{TABLE}: sst2 S1 KD1, mean: '"),
    (lambda folder: (folder / "summary/benchmarks.csv").unlink(), "summary/benchmarks.csv: missing"),
    (
        lambda folder: (folder / "summary/against_teacher.csv").write_bytes(b"\xff"),
        "summary/against_teacher.csv: cannot be",
    ),
    (
        lambda folder: (folder / "summary/training_costs.csv").write_text(""),
        "summary/training_costs.csv: 0 lines saved, ",
    ),
    (altered("summary/narrative.md", "Results", "Best results"), "summary/narrative.md: line 1 differs"),
    (lambda folder: (folder / "summary/more.csv").write_text("a\n1\n"), "summary/more.csv: not among the tables"),
    (altered("README.md", "seeds: 42", "seeds: 43"), "README.md: the part between the marks is not what"),
    (altered("config.yaml", "0.003", "0.002"), "config.yaml: 6 runs of other settings than then: B0_sst2_S1_seed"),
    (lambda folder: (folder / "report.html").unlink(), "report.html: missing"),
]
BROKEN = [
    (cut, "results.tar.xz: damaged, or altered since it was saved"),
    (altered("figures/fig_4_5_kd_gain.csv", "KD1", "KD2"), "figures/fig_4_5_kd_gain.csv: damaged, or altered since"),
    (altered("config.yaml", "42, 123, 456", "42, 123"), "config.yaml: 2 runs asked for no more: B0_sst2_S1_seed456, "),
]


@pytest.mark.parametrize("damages", [WHOLE, BROKEN], ids=["tables", "archive"])
def test_each_difference_is_one_line(
    damages: list[tuple[Callable[[Path], None], str]], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage, _ in damages:
        damage(copy)
    assert cli.main(["study", "verify", str(copy)]) == 2
    lines = capsys.readouterr().err.splitlines()
    for _, expected in damages:
        [line] = [line for line in lines if line.startswith(f"error: {expected}")]
        lines.remove(line)
    assert lines == []


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "results.tar.xz").unlink(), "results.tar.xz: missing"),
        (lambda folder: (folder / "README.md").unlink(), "README.md: missing"),
        (altered("config.yaml", "seeds", "sedes"), "config.yaml: config.yaml: unknown key 'sedes'"),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml: no configuration at"),
    ],
)
def test_a_file_that_is_missing_or_not_understood_is_one_line(
    damage: Callable[[Path], None], expected: str, copy: Path
) -> None:
    damage(copy)
    [problem] = study.verify(copy)[1]
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "study.json").unlink(), "no study here (study.json is missing)"),
        (altered("study.json", "2026", "2025"), "altered since it was written"),
        (lambda folder: (folder / "study.json").write_text("[]"), "not a study of this version"),
    ],
)
def test_what_is_no_study_is_said_in_one_line(
    damage: Callable[[Path], None], expected: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    assert cli.main(["study", "verify", str(copy)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert expected in line


def test_numbers_come_from_the_predictions_and_not_from_the_tables(copy: Path, tmp_path: Path) -> None:
    with tarfile.open(copy / "results.tar.xz") as archive:
        archive.extractall(tmp_path / "raw", filter="data")
    name = "raw_runs/KD1_sst2_S1_T2_a0.5_seed42/predictions.jsonl"
    altered(name, '"accuracy": 1.0', '"accuracy": 0.0')(tmp_path / "raw")
    files = [path for path in (tmp_path / "raw").rglob("*") if path.is_file()]
    contents = {path.relative_to(tmp_path / "raw").as_posix(): path.read_bytes() for path in files}
    study._write_archive(copy / "results.tar.xz", contents)
    about = read_json(copy / "study.json")
    about["files"]["results.tar.xz"] = sha256_file(copy / "results.tar.xz")
    atomic_write_record(copy / "study.json", about)
    _, problems = study.verify(copy)
    assert any(problem.startswith(f"{TABLE}: sst2 S1 KD1, n_seeds: '3' saved, '2'") for problem in problems)


def test_equal_results_are_saved_in_equal_bytes(saved: Path, reported: Path, tmp_path: Path) -> None:
    study.save(tmp_path / saved.name, reported)
    for path in saved.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (tmp_path / saved.name / path.relative_to(saved)).read_bytes()


def test_saving_again_keeps_what_others_wrote_and_renews_the_numbers(copy: Path, reported: Path) -> None:
    beside = copy.parent / "README.md"
    beside.write_text(f"# Studies\n\n{study_page.BEGIN}\n\nNone yet.\n\n{study_page.END}\n\nOthers'.\n")
    altered("README.md", "# made up", "# What we found")(copy)
    altered("README.md", "seeds: 42", "seeds: 43")(copy)
    (copy / "config.yaml").write_text("# why so\n" + (copy / "config.yaml").read_text())
    (copy / "notes.txt").write_text("kept")
    study.save(copy, reported)
    page = (copy / "README.md").read_text()
    assert page.startswith("# What we found") and "seeds: 42" in page
    assert (copy / "config.yaml").read_text().startswith("# why so") and (copy / "notes.txt").exists()
    assert study.verify(copy)[1] == []
    text = beside.read_text()
    assert (
        "[2026-01-02-made-up](2026-01-02-made-up) | SST-2 accuracy | big → small |" in text and "None yet" not in text
    )
    assert text.startswith("# Studies") and text.endswith("Others'.\n")


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        (lambda r: planned(r, ASKED | {"models": ASKED["models"] | {"teacher": {"name": "/big"}}}),
         SettingsError, r"plan.json: settings.models.teacher.name is a path of this machine \(/big\); name models"),
        (lambda r: planned(r, ASKED | {"seeds": [42, 123]}), DataError, "2 runs asked for no more"),
        (lambda r: (r / TABLE).write_text("task\n"), DataError, "build the report again with `kdsuite report`"),
        (lambda r: shutil.rmtree(r / "summary"), DataError, "missing; build the report again"),
        (lambda r: shutil.rmtree(r / "raw_runs"), DataError, "no results here"),
    ],
)  # fmt: skip
def test_what_cannot_travel_is_refused_and_nothing_is_written(
    change: Callable[[Path], Any], error: type[KdsuiteError], expected: str, reported: Path, tmp_path: Path
) -> None:
    results = Path(shutil.copytree(reported, tmp_path / "results"))
    change(results)
    with pytest.raises(error, match=expected):
        study.save(tmp_path / "studies" / "one", results)
    assert not (tmp_path / "studies" / "one").exists()


def test_a_path_of_this_machine_in_a_text_is_refused(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = Path(shutil.copytree(reported, tmp_path / "results"))
    page = results / "report.html"
    page.write_text(page.read_text() + f"<!-- {tmp_path}/models -->")
    with pytest.raises(SettingsError, match=rf"report.html holds a path of this machine \({tmp_path}\)"):
        study.save(tmp_path / "one", results)


def test_neither_other_folders_nor_other_settings_are_overwritten(copy: Path, reported: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="holds something else than a study"):
        study.save(tmp_path / "mine", reported)
    altered("config.yaml", "0.003", "0.002")(copy)
    with pytest.raises(
        SettingsError, match="config.yaml says tasks.sst2.training.learning_rate: 0.002, the plan 0.003"
    ):
        study.save(copy, reported)


def test_fractions_are_told_each_with_its_gain(tmp_path: Path) -> None:
    fractions = {0.25: {"KD1": 0.9}}
    root = write_results(
        tmp_path, Study(tasks=("sst2",), n=60, grid=((2.0, 0.5),), skills=PRETENDED.skills, fractions=fractions)
    )
    analysis = analyse(load(root), planned(root, ASKED).report)
    rows = list(study_page._rows(summarised(analysis, all_tables(analysis)), {"sizes": {"sst2": {}}}))
    told = [(row["method"], row["examples"]) for row in rows]
    assert told == [("teacher", ""), ("zero-shot", ""), ("B0", "100"), ("KD1", "100"), ("B0", "400"), ("KD1", "400")]
    assert float(rows[3]["difference"]) > float(rows[5]["difference"]) > 0


def beside(folder: Path) -> Path:
    """The page of the studies in a folder, with a table to be renewed."""
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"{study_page.BEGIN}\n\nNone yet.\n\n{study_page.END}\n")
    return folder / "README.md"


def test_a_study_is_saved_though_another_one_beside_it_is_damaged(reported: Path, tmp_path: Path) -> None:
    page = beside(tmp_path / "studies")
    (page.parent / "other").mkdir()
    (page.parent / "other" / "study.json").write_text("{")
    with pytest.raises(DataError, match=r"^saved one: .*; but the table in README.md beside it is as it was: .*other/"):
        study.save(page.parent / "one", reported)
    assert study.verify(page.parent / "one")[1] == []


def test_a_study_without_the_baseline_has_its_line_in_the_table(tmp_path: Path) -> None:
    skills = {name: PRETENDED.skills[name] for name in ("teacher", "zero-shot", "KD1")}
    results = write_results(tmp_path / "results", replace(PRETENDED, skills=skills))
    build_report(results, planned(results, ASKED | {"methods": ["KD1"]}).report)
    page = beside(tmp_path / "studies")
    study.save(page.parent / "one", results)
    [line] = [line for line in page.read_text().splitlines() if line.startswith("| [one](one)")]
    assert "| – | KD1 |" in line


def test_a_system_message_may_begin_with_a_slash(reported: Path, tmp_path: Path) -> None:
    results = Path(shutil.copytree(reported, tmp_path / "results"))
    students = {"S1": {"name": "./models/small", "system": "/no_think"}}
    planned(results, ASKED | {"models": ASKED["models"] | {"students": students}})
    study.save(tmp_path / "one", results)
    assert "system: /no_think" in (tmp_path / "one" / "config.yaml").read_text()


def test_a_study_asks_for_what_its_file_says_whatever_the_environment_does(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDENT_S1", "another/model")
    assert study.verify(copy)[1] == []
