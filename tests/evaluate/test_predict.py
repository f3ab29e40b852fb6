"""Predictions: every id once and in order, label scores as the model gives them, windows, and bad numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import pytest
import torch

from kdsuite.config import TaskSettings, task_section
from kdsuite.errors import RunError
from kdsuite.evaluate.predict import EvaluationSet, Prediction, metrics, predict, write_predictions
from kdsuite.models.generation import STOP
from kdsuite.store.parts import Parts
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import Example, Task, task_of
from kdsuite.tasks.sources import Row
from kdsuite.teacher.local import OutputSettings, ask

SST2, SQUAD = task_of("sst2", task_section("sst2")), task_of("squad", task_section("squad"))


@pytest.fixture
def reviews(llama_chat, sst2_settings) -> EvaluationSet:
    return EvaluationSet.of(
        task_of("sst2", sst2_settings), llama_chat, task_of("sst2", sst2_settings).load("validation")
    )


@pytest.fixture
def questions(llama_chat, squad_settings) -> EvaluationSet:
    settings = squad_settings.model_copy(update={"max_new_tokens": 6})
    return EvaluationSet.of(task_of("squad", settings), llama_chat, task_of("squad", settings).load("validation")[:12])


def test_lengths_of_batches_are_multiples_where_the_device_wants_few_shapes(
    llama_model, llama_chat, reviews, questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of label words to be scored, and of what a teacher is asked about; with the same result."""
    seen: set[int] = set()
    encoded = encode(SQUAD, llama_chat, SQUAD.load("train")[:5])
    keep = OutputSettings(4)

    def hook(module, arguments, named) -> None:
        seen.add(named["input_ids"].shape[-1] if "input_ids" in named else arguments[0].shape[-1])

    plain = predict(llama_model, llama_chat, reviews, batch_size=3), ask(llama_model, llama_chat, encoded, keep)
    handle = llama_model.register_forward_pre_hook(hook, with_kwargs=True)
    for place in ("kdsuite.evaluate.predict", "kdsuite.teacher.local", "kdsuite.models.beginning"):
        monkeypatch.setattr(f"{place}.bucket", lambda device: 32)
    padded = predict(llama_model, llama_chat, reviews, batch_size=3), ask(llama_model, llama_chat, encoded, keep)
    handle.remove()
    assert seen and {length % 32 for length in seen} == {0}
    assert [p.prediction for p in padded[0]] == [p.prediction for p in plain[0]]
    for ours, theirs in zip(padded[1], plain[1], strict=True):
        assert (ours["topk_ids"] == theirs["topk_ids"]).all()


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


@torch.no_grad()
def test_generated_answers_are_the_models_greedy_ones_and_their_confidence_the_mean_of_their_tokens(
    llama_model, llama_chat, questions
) -> None:
    predictions = predict(llama_model, llama_chat, questions, batch_size=4)
    for [prompt], prediction in list(zip(questions.prompts, predictions, strict=True))[:6]:
        new: list[int] = []
        scores: list[float] = []
        while len(new) < 6 and not STOP.search(llama_chat.decode(new)):
            logits = llama_model(torch.tensor([[*prompt, *new]])).logits[0, -1, : len(llama_chat.token_bytes)]
            best, id = logits.log_softmax(-1).max(-1)
            if int(id) in llama_chat.final_ids:
                scores = scores or [float(best)]
                break
            new, scores = [*new, int(id)], [*scores, float(best)]
        assert prediction.prediction == STOP.split(llama_chat.decode(new))[0].strip()
        assert prediction.confidence == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_of_several_windows_the_most_confident_answer_is_taken(llama_model, llama_chat, squad_settings) -> None:
    example = task_of("squad", squad_settings).load("validation")[0]
    [[whole]] = EvaluationSet.of(task_of("squad", squad_settings), llama_chat, [example]).prompts
    narrow = squad_settings.model_copy(update={"max_length": len(whole) - 20, "doc_stride": 16, "max_new_tokens": 4})
    data = EvaluationSet.of(task_of("squad", narrow), llama_chat, [example])
    [windows] = data.prompts
    assert len(windows) > 1
    [best] = predict(llama_model, llama_chat, data, batch_size=1)
    single = [
        predict(llama_model, llama_chat, EvaluationSet(data.task, [example], prompts=[[w]]), 1)[0] for w in windows
    ]
    chosen = max(single, key=lambda p: p.confidence or 0)
    assert best.confidence == pytest.approx(chosen.confidence, abs=1e-5)
    assert best.prediction == chosen.prediction


def answered(llama_model, llama_chat, example: Example, settings: TaskSettings, said: list[tuple[str, float]]):
    """The prediction for an example to whose windows a model said this, text and confidence."""
    data, parts = EvaluationSet(task_of("squad", settings), [example], prompts=[[[1]] * len(said)]), Parts()
    parts.done |= dict(enumerate(said))
    return predict(llama_model, llama_chat, data, 1, parts=parts)[0]


def test_windows_compare_by_confidence_alone_and_the_first_of_equals_is_taken(
    llama_model, llama_chat, squad_settings, squad_example
) -> None:
    """Not by what is said, nor by whether it is in the passage, nor by whether anything is."""
    said = [("London", -0.3), ("", -0.2), ("Atlantis or Ys", -0.1), ("London", -0.1)]
    best = answered(llama_model, llama_chat, squad_example, squad_settings, said)
    assert (best.prediction, best.confidence) == ("Atlantis or Ys", -0.1)


def test_the_headline_is_of_the_answer_as_it_came_and_the_cleaned_ones_score_is_beside(
    llama_model, llama_chat, squad_settings, squad_example
) -> None:
    def saying(raw: str) -> Prediction:
        return answered(llama_model, llama_chat, squad_example, squad_settings, [(raw, -0.1)])

    plain, wordy = saying(" London\n"), saying("According to the context, Ada lived in LONDON.")
    assert (plain.prediction, plain.cleaned) == ("London", "London")
    assert wordy.prediction == "According to the context, Ada lived in LONDON." and wordy.cleaned == "London"
    assert set(plain.scores.values()) == {1.0}
    assert wordy.scores == {"exact_match": 0, "f1": pytest.approx(2 / 8), "cleaned_exact_match": 1, "cleaned_f1": 1}
    found = metrics(SQUAD, [plain, wordy])
    assert found == {
        "exact_match": 50, "f1": pytest.approx(62.5), "n": 2, "cleaned_exact_match": 100, "cleaned_f1": 100,
    }  # fmt: skip


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
    """A kind that is derived from none of the three."""

    name, metric, secondary_metric = "capitals", "exact_match", "exact_match"
    question = "What is the capital of {{ country }}?"

    def example(self, row: Row, id: str) -> Example:
        return Example(id, {"country": row.text("country")}, row.text("city"), (row.text("city"),), id)

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        return {"exact_match": float(prediction in references)}


def test_a_kind_of_free_answers_needs_no_passage(tmp_path, llama_model, llama_chat) -> None:
    (tmp_path / "test.csv").write_text("country,city\nPeru,Lima\nCuba,Havana\n")
    task = Capitals("capitals", TaskSettings(kind="capitals", source=str(tmp_path), max_new_tokens=5))
    data = EvaluationSet.of(task, llama_chat, task.load("validation"))
    predictions = predict(llama_model, llama_chat, data, batch_size=2)
    assert [p.id for p in predictions] == ["capitals-validation-0", "capitals-validation-1"]
    assert all(p.cleaned is None and p.scores.keys() == {"exact_match"} for p in predictions)  # there is no cleaner
