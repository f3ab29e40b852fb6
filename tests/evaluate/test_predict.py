"""Predictions: every id once and in order, label scores as the model gives them, windows, and bad numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import pytest
import torch

from kdsuite.config import TaskSettings
from kdsuite.errors import RunError
from kdsuite.evaluate.predict import EvaluationSet, metrics, predict, write_predictions
from kdsuite.tasks.example import Example, Message, Task
from kdsuite.tasks.presets import Squad, Sst2

SST2, SQUAD = Sst2(), Squad()


@pytest.fixture
def reviews(llama_chat, sst2_settings) -> EvaluationSet:
    return EvaluationSet.of(SST2, llama_chat, SST2.load(sst2_settings, "validation"), sst2_settings)


@pytest.fixture
def questions(llama_chat, squad_settings) -> EvaluationSet:
    settings = squad_settings.model_copy(update={"max_new_tokens": 6})
    return EvaluationSet.of(SQUAD, llama_chat, SQUAD.load(settings, "validation")[:12], settings)


def test_label_scores_are_the_models_own_log_probabilities(llama_model, llama_chat, reviews) -> None:
    predictions = predict(llama_model, llama_chat, reviews, batch_size=5)
    for example, prediction in list(zip(reviews.examples, predictions, strict=True))[:4]:
        [prompt] = llama_chat.prompt_ids([SST2.messages(example)])
        for label in SST2.labels or ():
            ids = [*llama_chat.answer(label).target_ids, llama_chat.end_id]
            with torch.no_grad():
                logits = llama_model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            own = logits[:, : len(llama_chat.token_bytes)].log_softmax(-1)[range(len(ids)), ids].sum()
            assert prediction.label_logprobs is not None
            assert prediction.label_logprobs[label] == pytest.approx(float(own), abs=1e-3)
        scores = prediction.label_logprobs
        assert scores is not None and prediction.prediction == max(scores, key=lambda label: scores[label])


@pytest.mark.parametrize("data", ["reviews", "questions"])
def test_batch_size_changes_no_prediction_and_no_order(request, data, llama_model, llama_chat) -> None:
    split = request.getfixturevalue(data)
    one, many = (predict(llama_model, llama_chat, split, batch_size=size) for size in (1, 7))
    assert [p.id for p in one] == [p.id for p in many] == [e.id for e in split.examples]
    assert [p.prediction for p in one] == [p.prediction for p in many]
    assert [p.scores for p in one] == [p.scores for p in many]


def test_generated_answers_are_the_models_greedy_ones(llama_model, llama_chat, questions) -> None:
    predictions = predict(llama_model, llama_chat, questions, batch_size=4)
    for windows, prediction in list(zip(questions.prompts, predictions, strict=True))[:3]:
        [ids] = windows
        new: list[int] = []
        with torch.no_grad():
            while len(new) < 6 and (not new or new[-1] != llama_chat.end_id):
                new.append(int(llama_model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        text = llama_chat.decode([i for i in new if i != llama_chat.end_id])
        assert prediction.raw is not None and text.startswith(prediction.raw.rstrip())


def test_of_several_windows_the_most_confident_answer_is_taken(llama_model, llama_chat, squad_settings) -> None:
    example = SQUAD.load(squad_settings, "validation")[0]
    [[whole]] = EvaluationSet.of(SQUAD, llama_chat, [example], squad_settings).prompts
    narrow = squad_settings.model_copy(update={"max_length": len(whole) - 20, "doc_stride": 16, "max_new_tokens": 4})
    data = EvaluationSet.of(SQUAD, llama_chat, [example], narrow)
    [windows] = data.prompts
    assert len(windows) > 1
    [best] = predict(llama_model, llama_chat, data, batch_size=1)
    single = [
        predict(llama_model, llama_chat, EvaluationSet(SQUAD, narrow, [example], prompts=[[w]]), 1)[0] for w in windows
    ]
    assert best.confidence == pytest.approx(max(p.confidence or 0 for p in single), abs=1e-5)


@pytest.mark.parametrize("data", ["reviews", "questions"])
def test_scores_that_are_not_finite_are_an_error(request, data, llama_model, llama_chat) -> None:
    broken = copy.deepcopy(llama_model)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        predict(broken, llama_chat, request.getfixturevalue(data), batch_size=4)


def test_the_file_has_a_line_per_example_with_its_scores(tmp_path, llama_model, llama_chat, reviews) -> None:
    predictions = predict(llama_model, llama_chat, reviews, batch_size=5)
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [e.id for e in reviews.examples]
    accuracy = 100 * sum(row["scores"]["accuracy"] for row in rows) / len(rows)
    assert metrics(SST2, predictions)["accuracy"] == pytest.approx(accuracy)
    assert all({"prediction", "references", "label_logprobs"} <= row.keys() for row in rows)


class Capitals(Task):
    """Free answers: no labels, and no passage that the answer would stand in."""

    name, metric, secondary_metric = "capitals", "exact_match", "exact_match"

    def load(self, settings: TaskSettings, split: str) -> list[Example]:
        return [Example(c, {"country": c}, city, (city,), c) for c, city in (("Peru", "Lima"), ("Cuba", "Havana"))]

    def messages(self, example: Example, context: str | None = None) -> list[Message]:
        return [{"role": "user", "content": f"What is the capital of {example.inputs['country']}?"}]

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        return {"exact_match": float(prediction in references)}

    def aggregate(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return {"exact_match": 100.0 * sum(p in r for p, r in zip(predictions, references, strict=True))}


def test_a_task_of_free_answers_needs_no_passage(llama_model, llama_chat, squad_settings) -> None:
    task, settings = Capitals(), squad_settings.model_copy(update={"max_new_tokens": 5})
    data = EvaluationSet.of(task, llama_chat, task.load(settings, "validation"), settings)
    predictions = predict(llama_model, llama_chat, data, batch_size=2)
    assert [p.id for p in predictions] == ["Peru", "Cuba"]
    assert all(p.raw is not None and p.prediction == p.raw.strip() for p in predictions)
    assert task.clean(" Lima\n", data.examples[0]) == "Lima"


def test_an_answer_from_a_passage_is_cleaned_against_it(squad_example) -> None:
    assert SQUAD.clean("According to the context, Ada lived in LONDON.", squad_example) == "London"
