"""The page works in a browser: no error, all figures, a working explorer, a phone's width, no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdsuite.config import task_section
from kdsuite.report import words
from kdsuite.report.analysis import Analysis, analyse
from kdsuite.report.build import build_report
from kdsuite.report.load import load
from kdsuite.report.page import explorer_data
from kdsuite.tasks.example import task_of

from .conftest import SETTINGS
from .synthetic import SKILLS, Study, write_results

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000"
).split()

# Runs in the page before its own script: collects errors, then plays a reader and reports to the outer frame.
PROBE = """
<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => setTimeout(() => {
  const get = (id) => document.getElementById(id);
  const shown = () => Number(get("count").textContent.split(" ")[0].replace(",", ""));
  const set = (id, value) => { get(id).value = value; get(id).dispatchEvent(new Event("change")); };
  const seen = { errors, width: document.documentElement.scrollWidth };
  seen.all = shown();
  seen.cards = document.querySelectorAll(".example").length;
  get("next").click();
  seen.second = document.querySelector(".example .id").textContent;
  seen.prompt = document.querySelector(".example .prompt").textContent;
  set("f-outcome", "right"); seen.right = shown();
  set("f-outcome", "wrong"); seen.wrong = shown();
  set("f-method", "2"); seen.wrongB0 = shown();
  for (const outcome of ["mended", "broken"]) {
    set("f-method", "3"); set("f-outcome", outcome); seen[outcome] = shown();
    set("f-method", "all"); seen[`${outcome}ByAny`] = shown();
  }
  set("f-outcome", "any"); set("f-method", "all");
  get("f-disagree").click(); seen.disagree = shown(); get("f-disagree").click();
  set("f-task", "squad"); seen.squad = shown();
  seen.methods = [...get("f-method").options].map((option) => option.textContent);
  get("f-text").value = "ada 7 "; get("f-text").dispatchEvent(new Event("input")); seen.found = shown();
  const figures = [...document.querySelectorAll("figure svg")];
  seen.figures = figures.map((svg) => svg.getBoundingClientRect().height);
  const mark = document.querySelector("figure .tip");
  mark.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 50, clientY: 50 }));
  seen.tip = get("tip").hidden ? "" : get("tip").textContent;
  const ground = () => getComputedStyle(document.body).backgroundColor;
  const before = ground(); get("theme").click(); seen.themes = [before, ground()];
  parent.postMessage(seen, "*");
}, 50));
</script>
"""
SHOWN = """
<script>addEventListener("load", () => setTimeout(() => parent.postMessage({
  count: document.getElementById("count").textContent, cards: document.querySelectorAll(".example").length,
}, "*"), 50));</script>"""
FRAME = """<!doctype html>
<iframe src="probe.html" style="width:{width}px;height:900px"></iframe><pre id="seen"></pre>
<script>addEventListener("message", (event) => {{
  document.getElementById("seen").textContent = JSON.stringify(event.data);
}});</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium): the page was not opened")
    return found


def _play(browser: str, page: Path, folder: Path, width: int, probe: str = PROBE) -> tuple[dict[str, Any], list[str]]:
    """What a reader with this width sees, and what the browser's console says."""
    html = page.read_text(encoding="utf-8")
    (folder / "probe.html").write_text(html.replace("<head>", f"<head>{probe}", 1), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{folder}/frame.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen is not None, done.stderr[-2000:]
    assert seen[1], done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(seen[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console


def _turned(root: Path) -> dict[str, int]:
    """On how many sentences is B0 wrong and KD1 (any method) right in more than half of the seeds, and the reverse?"""
    task = analyse(load(root), SETTINGS).tasks[0]
    most = {c.method: np.mean(c.scores == 100, axis=0) > 0.5 for c in task.cells if c.trained and c.scores is not None}
    mended = {method: right & ~most["B0"] for method, right in most.items()}
    broken = {method: most["B0"] & ~right for method, right in most.items()}
    found = {"mended": mended["KD1"], "mendedByAny": np.any([*mended.values()], axis=0)}
    found |= {"broken": broken["KD1"], "brokenByAny": np.any([*broken.values()], axis=0)}
    counts = {name: int(turned.sum()) for name, turned in found.items()}
    assert 0 < counts["mended"] < counts["mendedByAny"] and 0 < counts["broken"] < counts["brokenByAny"]
    return counts


@pytest.mark.parametrize("width", [1280, 400])
def test_a_reader_finds_a_working_page(browser: str, whole: tuple[Path, list[str]], tmp_path: Path, width: int) -> None:
    seen, console = _play(browser, whole[0] / "report.html", tmp_path, width)
    assert console == []
    assert seen["errors"] == []
    assert seen["width"] <= width  # nothing but tables scrolls sideways
    assert (seen["all"], seen["cards"], seen["squad"]) == (120, 20, 120)
    assert seen["second"] == "sst2-validation-20"
    assert 'Film 20 is <b>fine</b> & "odd" </script> ünïcode.' in seen["prompt"]  # as text, not as markup
    assert 0 < seen["disagree"] < 120
    assert 0 < seen["right"] <= 120
    assert 0 < seen["wrongB0"] <= seen["wrong"] <= 120
    turned = _turned(whole[0])
    assert {name: seen[name] for name in turned} == turned
    assert seen["methods"] == ["any trained", "teacher", "zero-shot", "B0", "KD1", "KD2", "KD3"]
    assert seen["found"] == 4  # the questions of one passage
    assert len(seen["figures"]) == 10
    assert min(seen["figures"]) > 50
    assert seen["tip"]
    assert len(set(seen["themes"])) == 2


def test_gaps_do_not_break_the_page(browser: str, gappy: tuple[Path, list[str]], tmp_path: Path) -> None:
    seen, console = _play(browser, gappy[0] / "report.html", tmp_path, 400)
    assert console == []
    assert seen["errors"] == []
    assert seen["methods"] == ["any trained", "teacher", "zero-shot", "B0", "KD1", "KD3"]
    assert len(seen["figures"]) == 10


def test_where_nothing_is_trained_the_examples_are_shown_all_the_same(browser: str, tmp_path: Path) -> None:
    study = Study(tasks=("sst2",), n=30, skills={"teacher": 0.9}, students=(), benchmark=False)
    build_report(write_results(tmp_path / "results", study), SETTINGS)
    seen, console = _play(browser, tmp_path / "results" / "report.html", tmp_path, 1280, SHOWN)
    assert (console, seen) == ([], {"count": "30 of 30 examples", "cards": 20})


def test_the_page_asks_nobody_for_anything(whole: tuple[Path, list[str]]) -> None:
    html = (whole[0] / "report.html").read_text(encoding="utf-8")
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', without_names)
    assert "default-src 'none'" in html


def test_the_page_tells_what_was_not_run_and_what_it_stands_on(gappy: tuple[Path, list[str]]) -> None:
    html = (gappy[0] / "report.html").read_text(encoding="utf-8")
    for said in (
        "<code>KD2_squad_S1_seed42</code> not run: never started",
        "<code>KD2_sst2_S1_seed456</code> failed: loss is not finite at step 7",
        "incomplete grid: 3 of 4",
        "libraries.torch",
        "print of K",  # the fingerprints
        "kept_share",
        "@software{kdsuite",
    ):
        assert said in html


def test_gains_come_first_and_costs_last(whole: tuple[Path, list[str]]) -> None:
    html = (whole[0] / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'<figure id="fig_(\w+)">', html)
    assert names[:2] == ["4_5_kd_gain", "4_3_kd_comparison"]
    assert names[-4:] == ["4_1_performance_vs_size", "4_4_pareto", "4_2_latency", "4_6_memory"]
    places = ["headline", "doubts", "results", "fig_4_5_kd_gain", "seen", "fig_4_3_kd_comparison", "significance"]
    order = [html.index(f'"{place}') for place in places]
    assert order == sorted(order)


def _rows(html: str) -> list[list[str]]:
    """The rows of the box with what could have been seen."""
    box = html[html.index('<section id="seen">') :].partition("</section>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", box, re.DOTALL)]
    return [[*box.partition("<table>")[0].split("<p>")[1:], *row] for row in rows]


def test_the_box_says_what_more_seeds_would_see_and_cost(whole: tuple[Path, list[str]]) -> None:
    comparisons = [c for task in analyse(load(whole[0]), SETTINGS).tasks for c in task.comparisons]
    rows = [row for row in _rows((whole[0] / "report.html").read_text(encoding="utf-8")) if row[0] != "Comparison"]
    for c, (name, observed, seeds, *gains, settled, cost) in zip(comparisons, rows, strict=True):
        assert (name, observed, seeds, cost) == (
            c.name,
            words.signed(c.difference),
            "3",
            "24 s",
        )  # 2 × (10 + 2) seconds
        assert gains == [words.number(gain, 1) for gain in (c.detectable, *c.with_more.values())]
        assert list(map(float, gains)) == sorted(map(float, gains), reverse=True)
        assert settled == (f"{c.seeds_needed} seeds" if c.seeds_needed else "more than 100 seeds")


def test_with_too_few_seeds_the_box_says_what_is_still_to_run(tmp_path: Path) -> None:
    study = Study(n=40, tasks=("sst2",), seeds=(1, 2), benchmark=False)
    build_report(write_results(tmp_path, study), SETTINGS)
    page = tmp_path / "report.html"
    head, *rows = _rows(page.read_text(encoding="utf-8"))
    assert head[0].startswith("2 seeds are too few for a verdict, three are the fewest: 1 more of B0, KD1, KD2, KD3")
    assert "take about 48 s." in head[0]  # 4 × (10 + 2) seconds
    assert [row[3:5] for row in rows] == [["2", "too few seeds"]] * 3


def test_what_was_run_often_enough_is_not_to_be_run_again(tmp_path: Path) -> None:
    lost = {"KD1_sst2_S1_T2_a0.5_seed42": "failed", "KD2_sst2_S1_seed42": "failed", "KD2_sst2_S1_seed123": "missing"}
    study = Study(n=40, tasks=("sst2",), grid=((2.0, 0.5),), lost=lost)
    task = analyse(load(write_results(tmp_path, study)), SETTINGS).tasks[0]
    seconds = {("sst2", "S1", method): 600.0 for method in ("B0", "KD1", "KD2", "KD3")}
    [said] = words.fewest(task, seconds)
    assert said.startswith(
        "1 seed is too few for a verdict, three are the fewest: 1 more of KD1 and 2 more of KD2, each"
    )
    assert said.endswith("take about 30 min.")


def test_seeds_that_there_are_already_are_not_more(tmp_path: Path) -> None:
    study = Study(n=40, tasks=("sst2",), seeds=(1, 2, 3, 4, 5), grid=((2.0, 0.5),), seed_effect=0.001)
    for c in analyse(load(write_results(tmp_path, study)), SETTINGS).tasks[0].comparisons:
        assert list(c.with_more) == [5, 10, 20]
        assert c.with_more[5] is None and c.with_more[10] is not None and c.with_more[20] is not None
        assert c.with_more[20] < c.with_more[10]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (119, "119 s"), (121, "2 min"), (7100, "118 min"), (9000, "2.5 h"), (nan, "n/a")],
)
def test_durations_are_said_in_one_unit(seconds: float, said: str) -> None:
    assert words.lasting(seconds) == said


def test_every_student_is_held_against_its_own_baseline(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(n=20, tasks=("sst2",), students=("S1", "S2"), grid=((2.0, 0.5),)))
    data = explorer_data(analyse(load(root), SETTINGS).tasks[0], 20)
    against = {name: data["methods"][b] for name, b in zip(data["methods"], data["baseline"], strict=True)}
    assert (against["S1 KD1"], against["S2 KD1"], against["teacher"]) == ("S1 B0", "S2 B0", "S1 B0")


def test_what_stands_in_training_is_among_the_facts_about_the_data(whole: tuple[Path, list[str]]) -> None:
    page = (whole[0] / "report.html").read_text(encoding="utf-8")
    assert re.search(r"sst2\.in_training_text\.validation\.contained</th>\s*<td>3<", page)


def test_every_method_is_called_by_its_title_once(tmp_path: Path) -> None:
    """Those of the package and one from outside, as the plan has them."""
    study = Study(n=40, tasks=("sst2",), skills=SKILLS | {"CKD": 0.8}, gammas={"CKD": (0.5,)}, benchmark=False)
    build_report(write_results(tmp_path, study), SETTINGS)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    said = "B0: fine-tuning; KD1: logit distillation; KD2: sequence-level distillation; KD3: feature distillation; "
    assert html.count(f"{said}CKD: confident &lt;distillation&gt;.</p>") == 1


def test_ten_thousand_examples_with_eleven_runs_stay_small(steady: Analysis) -> None:
    """The page's size grows with the examples alone: 10,570 questions with their runs stay below 15 MB."""
    squad = next(task for task in steady.tasks if task.name == "squad")
    bytes_per_example = len(json.dumps(explorer_data(squad, 10_000))) / len(squad.ids)
    assert bytes_per_example * 10_570 < 6e6


def test_a_limit_keeps_the_disputed_examples(steady: Analysis) -> None:
    task = steady.tasks[0]
    data = explorer_data(task, 50)
    assert (len(data["examples"]), data["total"]) == (50, 800)
    assert all(len(answers) > 1 for _, _, _, answers, _ in data["examples"])


def test_prompts_are_those_of_the_task(steady: Analysis) -> None:
    for task, kind in (
        (steady.tasks[0], task_of("sst2", task_section("sst2"))),
        (steady.tasks[1], task_of("squad", task_section("squad"))),
    ):
        data = explorer_data(task, 10)
        assert data["prompt"] == kind.pattern(data["fields"])  # as the plan has it
    assert data["fields"] == ["context", "question"]
    assert data["prompt"].startswith("Context: \ue000context\ue001")
    assert len(data["pool"]) < 2 * len(data["examples"])  # a passage is stored once


def test_examples_may_have_other_inputs_than_the_first(steady: Analysis) -> None:
    task, found = steady.tasks[1], []
    for bare in (0, 1):
        name = task.ids[bare]
        one = task.examples[name] | {"inputs": {"question": task.examples[name]["inputs"]["question"]}}
        data = explorer_data(replace(task, examples=task.examples | {name: one}), len(task.ids))
        found.append(
            [data["pool"][data["examples"][bare][1][data["fields"].index(f)]] for f in ("context", "question")]
        )
        assert found[-1] == ["", one["inputs"]["question"]]


def test_an_answer_that_is_nearly_right_is_not_right(steady: Analysis) -> None:
    """Nor one that is nearly wrong wrong: the page tells these by 1 and 0."""
    task, shown = steady.tasks[1], []
    for score in (1.0, 0.9951, 0.5, 0.004, 0.0):
        cell = task.cells[0]
        run = replace(cell.predictions[0], scores={task.metric: np.full(len(task.ids), score)})
        data = explorer_data(replace(task, cells=(replace(cell, predictions=(run,)),)), 1)
        shown.append(data["examples"][0][3][0][1])
    assert shown == [1, 0.99, 0.5, 0.01, 0]


def test_markup_in_data_is_text_on_the_page(tmp_path: Path) -> None:
    """Predictions, references, reasons of failures: as text, and only the page's own scripts run."""
    write_results(tmp_path, Study(n=120, tasks=("squad",), benchmark=False))
    attack = "<script>alert('x')</script><img src=x onerror=alert(1)>"
    for path in tmp_path.rglob("*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace("New York", attack), encoding="utf-8")
    failed = next(tmp_path.glob("raw_runs/KD3_squad*/run.json"))
    record = json.loads(failed.read_text()) | {"status": "failed", "reason": attack}
    failed.write_text(json.dumps(record))
    build_report(tmp_path, SETTINGS)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert attack not in page and "<img src=x" not in page and "<script>alert" not in page
    assert "&lt;script&gt;alert" in page  # the reason
    assert "\\u003cscript>alert" in page  # the predictions, as data of the page's script
