"""lm-evaluation-harness repeats a run: it gets our tokens, and makes our choices."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdsuite import cli, pipeline
from kdsuite.config import Settings, task_section
from kdsuite.errors import SettingsError
from kdsuite.evaluate.predict import label_scores
from kdsuite.extras import lm_eval_task
from kdsuite.runtime.progress import Progress
from kdsuite.store.files import atomic_write_record, read_json
from kdsuite.tasks.encoding import ChatTokenizer, encode
from kdsuite.tasks.example import Task, task_of

RUN, NAME = "B0_mine_little_seed42", "kdsuite_mine"
HARNESS = os.environ.get("KDSUITE_LM_EVAL")  # a folder with lm_eval and what it needs beside our own requirements


@pytest.fixture
def sentiment() -> Task:
    return task_of("sst2", task_section("sst2"))


def harness_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As lm_eval 0.4.13 encodes a request of a causal model, with add_bos_token=False (`_encode_pair`)."""
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    whole = tokenizer.encode(context + continuation, add_special_tokens=False)
    start = len(tokenizer.encode(context, add_special_tokens=False))
    return whole[:start], whole[start:]


@torch.inference_mode()
def log_prob(model: Any, context: list[int], continuation: list[int]) -> float:
    scores = model(torch.tensor([[*context, *continuation][:-1]])).logits[0].log_softmax(-1)
    at = range(len(context) - 1, len(context) + len(continuation) - 1)
    return float(sum(scores[i, token] for i, token in zip(at, continuation, strict=True)))


@pytest.mark.parametrize("family", ["qwen", "llama"])
def test_requests_are_our_tokens_and_their_scores_make_our_choices(
    family: str, sentiment: Task, request: pytest.FixtureRequest
) -> None:
    chat: ChatTokenizer = request.getfixturevalue(f"{family}_chat")
    model = request.getfixturevalue(f"{family}_model")
    examples = sentiment.load("validation")[:12]
    encoded = encode(sentiment, chat, examples)
    ours = label_scores(model, chat, encoded, 2, batch_size=4)
    rows = lm_eval_task.rows_of(sentiment, chat, examples)
    for example, row, one, scores in zip(examples, rows, encoded, ours, strict=True):
        pairs = [harness_pair(chat.tokenizer, row["prompt"], choice) for choice in row["choices"]]
        own = [[t for t, c in zip(one.targets, one.choices, strict=True) if c == k] for k in range(2)]
        assert [[*a, *b] for a, b in pairs] == [one.prompt + ids for ids in own]
        theirs = torch.tensor([log_prob(model, *pair) for pair in pairs])
        shift = theirs - scores  # of what is moved from the prompt into every continuation
        assert shift[0].item() == pytest.approx(shift[1].item(), abs=1e-4)
        assert theirs.argmax() == scores.argmax()
        assert list(sentiment.labels or ())[row["gold"]] == example.references[0]


def test_of_several_references_every_one_is_right_there_too(sentiment: Task, qwen_chat: ChatTokenizer) -> None:
    """The harness takes a list of right choices, in every row or in none."""
    one, two = sentiment.load("validation")[:2]
    labels = list(sentiment.labels or ())
    several = replace(one, references=(*labels,))
    rows = lm_eval_task.rows_of(sentiment, qwen_chat, [several, two])
    assert [row["gold"] for row in rows] == [[0, 1], [labels.index(two.references[0])]]


def test_a_prompt_that_would_be_read_otherwise_is_refused(sentiment: Task, qwen_chat: ChatTokenizer) -> None:
    """A tokenizer that joins the end of turn to a label's last letter only in a text without a boundary there."""
    (example,) = sentiment.load("validation")[:1]
    (encoded,) = encode(sentiment, qwen_chat, [example])
    (row,) = lm_eval_task.rows_of(sentiment, qwen_chat, [example])
    assert lm_eval_task._read_alike(qwen_chat, encoded, row["prompt"], row["choices"])
    assert not lm_eval_task._read_alike(qwen_chat, encoded, row["prompt"] + " ", row["choices"])
    assert not lm_eval_task._read_alike(qwen_chat, encoded, row["prompt"], row["choices"][::-1])
    special = replace(example, inputs={"sentence": "good"})  # its text is not that of `encoded`
    (other,) = lm_eval_task.rows_of(sentiment, qwen_chat, [special])
    assert not lm_eval_task._read_alike(qwen_chat, encoded, other["prompt"], row["choices"])


def trained(settings: Settings, folder: Path) -> Path:
    outcome = pipeline.run(settings, folder / "results", ("train",), methods=["B0"], progress=Progress.silent())
    assert outcome.failed == []
    return folder / "results"


def export(results: Path, *more: str) -> int:
    return cli.main(["export", RUN, str(results.parent / "model"), "--results", str(results), *more])


@pytest.mark.slow
def test_a_run_is_refused_where_it_cannot_be_repeated(
    one_task: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = trained(one_task, tmp_path)
    task = str(tmp_path / "task")
    capsys.readouterr()
    assert export(results, "--lm-eval", task, "--card") == 2
    assert "it goes with weights for transformers" in capsys.readouterr().err
    assert export(results, "--lm-eval", str(results)) == 2
    assert "is there already; give a new or an empty folder" in capsys.readouterr().err
    data = results / "processed_data" / "mine" / "validation.jsonl"
    whole = data.read_text()
    data.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert export(results, "--lm-eval", task) == 2
    assert "holds other examples than" in capsys.readouterr().err
    data.write_text(whole)
    path = results / "raw_runs" / "plan.json"
    plan = read_json(path)
    path.write_text("{")
    assert export(results, "--lm-eval", task) == 2
    assert "plan.json" in capsys.readouterr().err
    others = [run | {"fingerprint": "another"} for run in plan["runs"]]
    atomic_write_record(path, plan | {"runs": others})
    assert export(results, "--lm-eval", task) == 2
    assert f"{RUN} is not of the plan" in capsys.readouterr().err
    assert not (tmp_path / "model").exists() and not (tmp_path / "task").exists()


def test_generated_answers_are_refused(squad_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"spec": {"task": "squad"}, "run_id": "r"}
    monkeypatch.setattr(lm_eval_task, "completed", lambda results, run_id: record)
    monkeypatch.setattr(
        lm_eval_task, "_settings", lambda layout, record: SimpleNamespace(tasks={"squad": squad_settings})
    )
    with pytest.raises(SettingsError, match="is for tasks with labels; the answers of squad are generated"):
        lm_eval_task.task_files(tmp_path, "r", tmp_path, whole=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lora", [False, True])
def test_the_harness_itself_repeats_the_run_offline(one_task: Settings, tmp_path: Path, lora: bool) -> None:
    if not (HARNESS or importlib.util.find_spec("lm_eval")):
        pytest.skip("no lm_eval here; set KDSUITE_LM_EVAL to a folder that holds it (requirements-lm-eval.txt)")
    tree = one_task.model_dump()
    tree["models"]["lora"] |= {"enabled": lora, "r": 2}
    results = trained(Settings.model_validate(tree), tmp_path)
    assert export(results, "--lm-eval", str(tmp_path / "made")) == 0
    moved = (tmp_path / "made").rename(tmp_path / "task")  # a folder that can be given away
    head = (moved / f"{NAME}.yaml").read_text().splitlines()[0]
    command = [*head.removeprefix("# lm_eval ").removesuffix("DIR").split(), str(moved), "--log_samples"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": HARNESS or "", "HF_HOME": str(tmp_path / "home")}
    arguments = [*command, "--device", "cpu", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((results / "raw_runs" / RUN / "run.json").read_text())
    (found,) = (tmp_path / "out").rglob("results_*.json")
    accuracy = json.loads(found.read_text())["results"][NAME]["acc,none"]
    assert 100 * accuracy == pytest.approx(record["metrics"]["validation"]["accuracy"], abs=1e-3)
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    theirs = {}
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        scores = [float(response[0][0]) for response in sample["resps"]]
        theirs[sample["doc"]["id"]] = scores
    said = (results / "raw_runs" / RUN / "predictions.jsonl").read_text().splitlines()
    for one in map(json.loads, said):
        (negative, positive), scores = one["label_logprobs"].values(), theirs[one["id"]]
        assert scores[1] - scores[0] == pytest.approx(positive - negative, abs=1e-3)
