"""A card says what the report says, and where licences forbid what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants, parse_eval_result_entries

from kdsuite import cli
from kdsuite.extras import card
from kdsuite.extras.licences import licence_of
from kdsuite.report import words
from kdsuite.report.analysis import analyse
from kdsuite.report.load import load
from kdsuite.store.files import read_json
from kdsuite.store.layout import Layout
from report.conftest import SETTINGS, STEADY
from report.synthetic import Study, write_results

RUN = "KD1_sst2_S1_T4_a0.5_seed42"


def models(root: Path, teacher: dict[str, Any]) -> None:
    """The plan's models; the student is a folder with a card."""
    plan = read_json(root / "raw_runs" / "plan.json")
    plan["settings"]["models"] = {"teacher": teacher, "students": {"S1": {"name": str(root / "student")}}}
    (root / "raw_runs" / "plan.json").write_text(json.dumps(plan))


def folder_with_card(folder: Path, metadata: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(metadata)}---\n")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which KD1 is better than B0, of data from the hub."""
    folder = tmp_path_factory.mktemp("card")
    root = write_results(folder, Study(**STEADY, tasks=("sst2",), grid=((4.0, 0.5),), benchmark=False))
    plan = read_json(root / "raw_runs" / "plan.json")
    plan["tasks"]["sst2"]["hub_id"] = "stanfordnlp/sst2"
    (root / "raw_runs" / "plan.json").write_text(json.dumps(plan))
    folder_with_card(root / "student", {"license": "apache-2.0"})
    models(root, {"name": str(folder_with_card(root / "teacher", {"license": "llama3"}))})
    (root / "models" / RUN).mkdir(parents=True)
    return root


def about(root: Path, **more: Any) -> card.About:
    record = read_json(root / "raw_runs" / RUN / "run.json")
    return card.About(Layout(root), record, **{"library": "transformers", **more})


@pytest.mark.slow
def test_the_card_says_what_the_report_says(root: Path, tmp_path: Path) -> None:
    assert cli.main(["export", RUN, str(tmp_path / "out"), "--card", "--results", str(root)]) == 0
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()} == {
        "README.md",
        ".eval_results/kdsuite.yaml",
    }
    made = ModelCard.load(tmp_path / "out" / "README.md")
    assert made.data.to_dict()["license"] == "apache-2.0" and made.data.to_dict()["datasets"] == ["stanfordnlp/sst2"]
    (task,) = analyse(load(root), SETTINGS).tasks
    cell, comparison = task.cell("KD1", "S1"), task.comparison("S1", "KD1")
    assert cell is not None and comparison is not None and comparison.verdict == "better"
    (gap,) = [gap for gap in task.gaps if gap.a == "KD1"]
    score = f"{cell.mean:.1f} % accuracy (95 % interval {words.span(cell.interval)})"
    own = read_json(root / "raw_runs" / RUN / "run.json")["metrics"]["validation"]["accuracy"]
    for fact in (
        words.said("reading", task, comparison),
        words.said("gap_reading", task, gap, SETTINGS.margin),
        f"KD1 over 3 runs on validation: {score}",
        f"accuracy {own:.2f}",
        "train_seconds: 10",
        "teacher_seconds (share of this run): 2",  # 10 s of fine-tuning and 8 s of outputs, over nine taught runs
        "Weights: derived from m, whose licence applies: apache-2.0",
    ):
        assert fact in made.text, fact


def test_the_score_is_in_the_hubs_form_unless_other_weights_are_exported(root: Path, tmp_path: Path) -> None:
    one, quantized = about(root), about(root, quantized="int8")
    card.write(one, tmp_path)
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / card.RESULTS).read_text()))
    recorded = read_json(root / "raw_runs" / RUN / "run.json")["metrics"]["validation"]["accuracy"]
    assert (entry.dataset_id, entry.task_id) == ("stanfordnlp/sst2", "sst2")
    assert entry.value == pytest.approx(recorded, abs=1e-4)
    assert "800 examples" in (entry.notes or "") and "95 % interval over examples" in (entry.notes or "")
    quantized.__dict__["analysis"] = one.analysis
    (tmp_path / "quantized").mkdir()
    card.write(quantized, tmp_path / "quantized")
    assert [path.name for path in (tmp_path / "quantized").iterdir()] == ["README.md"]


def test_results_without_a_plan_have_a_card_that_says_what_it_cannot(root: Path, tmp_path: Path) -> None:
    one = about(root)
    one.__dict__["analysis"] = "what task 'sst2' is scored by is not recorded"
    text = "\n".join(card._results(one))
    assert "This model on validation: accuracy" in text and "How it compares is not told: what task" in text


@pytest.mark.parametrize(
    ("metadata", "words", "warned"),
    [
        ({"license": "apache-2.0"}, "does not restrict", False),
        ({"license": "llama2"}, "forbids using its outputs", True),
        ({"license": "llama3"}, "forbids using its outputs", True),
        ({"license": "llama3.1"}, "begins with Llama", False),
        ({"license": "gemma"}, "is a Model Derivative", False),
        ({"license": "other", "license_name": "qwen-research"}, "not commercially", True),
        ({"license": "other", "license_name": "of-my-own"}, "licence of-my-own; what these terms say", False),
        ({}, "licence unknown; what these terms say", False),
    ],
)
def test_what_a_teachers_licence_says_of_training_on_its_outputs(
    root: Path, tmp_path: Path, metadata: dict[str, str], words: str, warned: bool
) -> None:
    models(root, {"name": str(folder_with_card(tmp_path / "teacher", metadata))})
    text = "\n".join(card._licences(about(root)))
    assert words in text and ("**Warning.**" in text) == warned


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("https://api.openai.com", True),
        ("http://localhost:8000", False),  # as the card of its tokenizer says
        ("https://notopenai.com", False),
    ],
)
def test_a_provider_behind_a_url_has_terms_of_its_own(root: Path, tmp_path: Path, url: str, warned: bool) -> None:
    tokenizer = folder_with_card(tmp_path / "tokenizer", {"license": "mit"})
    models(root, {"url": url, "model": "some", "tokenizer": str(tokenizer)})
    text = "\n".join(card._licences(about(root)))
    assert ("**Warning.**" in text) == warned and ("compete" in text) == warned
    assert ("does not restrict" in text) != warned


def test_a_licence_that_lies_nowhere_is_unknown(tmp_path: Path) -> None:
    assert licence_of(str(tmp_path)) == licence_of("owner/never-seen") == licence_of("no hub id") == "unknown"


@pytest.mark.parametrize(
    ("repo", "offline", "line"),
    [
        ("name-alone", False, "--push takes OWNER/NAME"),
        ("a/b/c", False, "--push takes OWNER/NAME"),
        ("some/model", True, "nothing is pushed to some/model: HF_HUB_OFFLINE is set"),
        ("some/model", False, "without a token; put HF_TOKEN"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    repo: str,
    offline: bool,
    line: str,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", RUN, "out", "--card", "--push", repo, "--results", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and line in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [b"---\nname: a: b\n---\n", b"---\nOur best model\n---\n", b"\xff"])
def test_what_is_no_card_says_nothing_of_a_licence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "README.md").write_bytes(text)
    assert licence_of(str(tmp_path)) == "unknown"


def test_a_teacher_that_was_trained_whole_is_derived_from_the_plans_teacher(root: Path, tmp_path: Path) -> None:
    models(root, {"name": str(folder_with_card(tmp_path / "big", {"license": "llama3"}))})
    one = about(root)
    one.record["spec"] = {"method": "teacher", "task": "sst2", "student": None}
    one.record["model"]["name"] = "big"
    assert one.base.where == str(tmp_path / "big")
    assert "- Weights: derived from big, whose licence applies: llama3." in "\n".join(card._licences(one))
