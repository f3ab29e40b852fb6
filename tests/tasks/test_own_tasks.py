"""A task of one's own from its section to what models read: what decides a run, task files, shots, limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from kdsuite.config import Settings, load, task_section
from kdsuite.errors import DataError, SettingsError
from kdsuite.extras.offline.models import byte_level_tokenizer
from kdsuite.plan import expand, run_fingerprint
from kdsuite.tasks.encoding import ChatTokenizer, encode, encode_prompts, label_answers
from kdsuite.tasks.example import Example, Task, task_of
from kdsuite.tasks.splits import make_splits

MODELS = {"teacher": {"name": "offline-teacher"}, "students": {"S1": {"name": "offline-student"}}}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TWO = {"kind": "classification", "labels": ["good", "bad"]}


# --- what decides a run

RECORDED = {  # by the edition in which both tasks were classes of their own
    "plain": {
        "B0_sst2_S1_seed42": "63c1f00529d7feb8bfcf7c77f39dcd62fe83be5e872ee5957d897760ef997812",
        "B0_squad_S1_seed42": "5ed065f37f3998bcba532573adf343e43cebf32ede114ccf0252b42fa2171dee",
    },
    "changed": {
        "B0_sst2_S1_seed42": "f46b328dff30552b3b562a961dcb2a15f34e183dcac3fbc751eb7e8ac53e6b30",
        "B0_squad_S1_seed42": "099159757df078c42c2d93c92f4a5db554658ff59706602d2eb6b8e9440398dd",
    },
    "own": {  # by the first edition with kinds of tasks
        "B0_free_S1_seed42": "6a103df2c7567df9db832b13fbdd914cfb387065a5e8c3c16fe2e29ea2f34af9",
        "B0_choice_S1_seed42": "8e2a7b38496da7db76fc2698260d1b594f1e86449f3565b78bd5878eade69bb3",
    },
}
CHANGED = {
    "sst2": {"train_size": 500, "labels_text": {"positive": "good"}},
    "squad": {"source": "data", "splits": {"train": "train.json"}, "max_length": 300, "training": {"epochs": 2}},
}
OWN = {
    "free": {"kind": "generation", "source": "rows.jsonl", "metrics": ["chrf"]},
    "choice": TWO | {"source": "rows.jsonl"},
}


def fingerprints(tasks: dict[str, Any]) -> dict[str, str]:
    settings = Settings.model_validate({"tasks": tasks, "models": MODELS, "seeds": [42], "methods": ["B0"]})
    sources = {"data": "d", "teacher": "t", "S1": "s"}
    return {spec.run_id: run_fingerprint(settings, spec, sources, ["cpu"]) for spec in expand(settings)}


@pytest.mark.parametrize(
    ("tasks", "recorded"), [({"sst2": {}, "squad": {}}, "plain"), (CHANGED, "changed"), (OWN, "own")]
)
def test_runs_of_earlier_editions_are_still_known(tasks: dict[str, Any], recorded: str) -> None:
    found = fingerprints(tasks)
    assert {run: found[run] for run in RECORDED[recorded]} == RECORDED[recorded]


@pytest.mark.parametrize(
    ("key", "value"),
    [("prompt", "Say: {{ sentence }}"), ("system", "Be brief."), ("examples", 2),
     ("labels", ["negative", "positive", "mixed"]), ("columns", {"input": {"sentence": "text"}}), ("fragments", False),
     ("positive", None)],
)  # fmt: skip
def test_what_changes_a_result_makes_another_run_and_what_does_not_does_not(key: str, value: Any) -> None:
    assert task_section("sst2", {key: value}).identity() != task_section("sst2").identity()
    told = {"title": "Films", "licence": "mine", "citation": "me", "quality_floor": 10, "hub_id": "me/films"}
    told |= {"unlabeled": "raw.csv", "transfer": "labelled"}  # by their content, for those that read them
    assert task_section("sst2", told).identity() == task_section("sst2").identity()


def test_a_metric_of_ones_own_that_was_mended_makes_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    metric, shown = tmp_path / "mended_of_this_test.py", tmp_path / "shown_of_this_test.py"
    shown.write_text("from mended_of_this_test import score\n")
    tasks = {
        name: {"kind": "generation", "source": "rows.jsonl", "metrics": [f"{module}_of_this_test:score", "chrf"]}
        for name, module in (("one", "mended"), ("two", "shown"))
    }

    def found(text: str) -> dict[str, str]:
        """As a new process finds them."""
        metric.write_text(text)
        for module in ("mended_of_this_test", "shown_of_this_test"):
            sys.modules.pop(module, None)
        return fingerprints(tasks | OWN)

    first = found("def score(said, right):\n    return 0.0\n")
    metric.write_text("def score(said, right):\n    return 1.0  # mended while it is in use\n")
    assert fingerprints(tasks | OWN) == first
    mended = found(metric.read_text())
    assert {run.split("_")[1] for run in first if mended[run] != first[run]} == {"one", "two"}
    assert found("def score(said, right):\n    return 0.0\n") == first


# --- sections, presets, files


def configured(path: Path, tasks: dict[str, Any]) -> Settings:
    (path / "configuration.yaml").write_text(json.dumps({"tasks": tasks, "models": MODELS}))
    return load(path / "configuration.yaml", env_file=None)


def test_a_preset_is_overridden_key_by_key() -> None:
    changed = task_section("films", {"preset": "sst2", "splits": {"train": "mine.tsv"}, "train_size": 9})
    usual = task_section("sst2")
    assert (changed.splits.train, changed.splits.validation) == ("mine.tsv", usual.splits.validation)
    others = {"splits", "train_size"}
    assert changed.model_dump(exclude=others) == usual.model_dump(exclude=others)


def test_a_task_that_is_called_as_its_kind_needs_no_kind() -> None:
    free = {"source": "rows.jsonl", "metrics": ["chrf"]}
    assert fingerprints({"generation": free}) == fingerprints({"generation": free | {"kind": "generation"}})


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task, its data and its prompt; the call is from elsewhere."""
    folder = tmp_path / "shared"
    (folder / "parts").mkdir(parents=True)
    rows = [{"text": f"word {i}", "label": ("good", "bad")[i % 2]} for i in range(40)]
    (folder / "parts" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "raw.csv").write_text("text\nmore\n")
    (folder / "ask.txt").write_text("\ufeffGood or bad?\n{{ text }}\n", encoding="utf-8")
    task = TWO | {"source": "parts/*.jsonl", "unlabeled": "raw.csv", "prompt_file": "ask.txt"}
    (folder / "task.yaml").write_text(json.dumps(task | {"columns": {"target": "label", "input": "text"}}))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("place", ["shared/task.yaml", "~/shared/task.yaml"])
def test_places_in_a_task_file_are_beside_it(
    shared: Path, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    section = configured(tmp_path, {"mine": {"file": place}}).tasks["mine"]
    assert section.prompt == "Good or bad?\n{{ text }}\n"
    assert Path(section.unlabeled or "").resolve() == shared / "raw.csv"
    assert len(task_of("mine", section).load("train")) == 40
    hub = TWO | {"source": "owner/name", "prompt_file": "~/shared/ask.txt"}
    (shared / "hub.yaml").write_text(json.dumps(hub))
    section = configured(tmp_path, {"mine": {"file": "shared/hub.yaml"}}).tasks["mine"]
    assert (section.source, section.prompt) == ("owner/name", "Good or bad?\n{{ text }}\n")


def test_a_configuration_overrides_a_task_file_key_by_key(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Well, {{ text }}?")
    of_file = {"file": "shared/task.yaml", "columns": {"group": "text"}, "examples": 2}
    for prompt in ({"prompt": "Well, {{ text }}?"}, {"prompt_file": "other.txt"}):
        section = configured(tmp_path, {"mine": of_file | prompt}).tasks["mine"]
        assert section.prompt == "Well, {{ text }}?"
        assert (section.columns.input, section.columns.group, section.examples) == ("text", "text", 2)


@pytest.mark.parametrize(
    ("text", "given", "told"),
    [
        ("kind: [", {}, r"task\.yaml, line \d: not valid YAML"),
        ("- a", {}, "the mapping that stands under a task's name"),
        ("tasks: {mine: {}}", {}, "not a configuration"),
        ("kind: classification\nkind: generation", {}, "kind"),
        (None, {"file": "task.yml"}, r"file task\.yml cannot be read \(No such file"),
        (None, {"prompt_file": "none.txt"}, r"prompt_file none\.txt cannot be read \(No such file"),
        (None, {"prompt_file": "shared/ask.txt", "prompt": "{{ text }}"}, "mine has a prompt and a prompt_file"),
        ("prompt: '{{ text }}'\nprompt_file: ask.txt", {}, r"task\.yaml has a prompt and a prompt_file"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_one_line(
    shared: Path, tmp_path: Path, text: str | None, given: dict[str, Any], told: str
) -> None:
    if text is not None:
        (shared / "task.yaml").write_text(text)
    with pytest.raises(SettingsError, match=told) as caught:
        configured(tmp_path, {"mine": {"file": "shared/task.yaml", **given}})
    assert "\n" not in str(caught.value)


# --- system messages


def task(**values: Any) -> Task:
    return task_of("mine", task_section("mine", TWO | {"source": "rows.csv"} | values))


def templated(template: str, **values: Any) -> ChatTokenizer:
    tokenizer = byte_level_tokenizer(["A film, good or bad? Be brief. Be kind."] * 20, 400)
    tokenizer.chat_template = template
    return ChatTokenizer(tokenizer, **values)


REVIEW = Example("r", {"text": "a fine film"}, "good", ("good",), "g")


def test_the_systems_of_model_and_task_are_one_message() -> None:
    chat = templated(CHATML + OPEN, system="Be kind.")
    [ids] = chat.prompt_ids([task(system="Be brief.").messages(REVIEW)])
    text = chat.tokenizer.decode(ids)
    assert text.count("<|im_start|>system") == 1 and "system\nBe kind.\n\nBe brief.<|im_end|>" in text


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (CHATML.replace("messages %}", "messages if m.role != 'system' %}"), "does not write the system message"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no systems') }}{% endif %}" + CHATML, "no systems"),
    ],
)
def test_a_template_that_drops_or_refuses_the_tasks_system_message_is_told(template: str, told: str) -> None:
    chat = templated(template + OPEN)
    assert encode(task(), chat, [REVIEW])
    with pytest.raises(DataError, match=f"{told}.*task") as caught:
        encode(task(system="Be brief."), chat, [REVIEW])
    assert "\n" not in str(caught.value) and "out" in str(caught.value)


# --- solved examples


def test_shots_are_in_no_other_split_and_stand_before_the_question_as_turns(
    tmp_path: Path, qwen_chat: ChatTokenizer
) -> None:
    rows = "".join(f"word {i},{('good', 'bad')[i % 2]}\n" for i in range(100))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    few = task(source=str(tmp_path / "rows.csv"), examples=2, labels_text={"good": "Good", "bad": "Bad"})
    splits = make_splits(few)
    assert splits["shots"] == make_splits(few)["shots"] and len(splits["shots"]) == 2
    ids = [example.id for examples in splits.values() for example in examples]
    assert sorted(splits) == ["dev", "shots", "train", "validation"] and len(set(ids)) == len(ids) == 100
    few.shots = splits["shots"]
    said = few.messages(REVIEW)
    assert [m["role"] for m in said] == ["user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in said[1::2]] == [s.target.capitalize() for s in few.shots]
    assert all(s.inputs["text"] in m["content"] for s, m in zip(few.shots, said[::2], strict=False))
    [prompt] = qwen_chat.prompt_ids([said])
    text = qwen_chat.tokenizer.decode(prompt)
    assert text.count("<|im_start|>assistant") == 3 and text.index(few.shots[1].inputs["text"]) < text.index("a fine")


# --- limits


def test_solved_examples_that_leave_no_room_are_told_with_the_example(qwen_chat: ChatTokenizer) -> None:
    few = task(max_length=120)
    assert encode(few, qwen_chat, [REVIEW])
    few.shots = [Example(f"s{i}", {"text": "a long film " * 20}, "bad", ("bad",), "g") for i in range(2)]
    for encoded in (encode, encode_prompts):
        with pytest.raises(DataError, match="example r: the prompt is longer than max_length allows; raise max_length"):
            encoded(few, qwen_chat, [REVIEW])


def test_a_target_that_is_longer_than_max_length_is_told_with_its_tokens(qwen_chat: ChatTokenizer) -> None:
    free = task_of("mine", task_section("mine", {"kind": "generation", "source": "rows.csv", "max_length": 40}))
    example = Example("g1", {"prompt": "Go on."}, "word " * 60 + "end", ("end",), "g")
    fed = len(qwen_chat.answer(example.target).ids)
    with pytest.raises(DataError, match=f"example g1: the target alone takes {fed} tokens of the 40 of max_length"):
        encode(free, qwen_chat, [example])


def test_labels_that_a_tokenizer_cannot_tell_apart_are_told(texts: list[str]) -> None:
    tokenizer = byte_level_tokenizer(texts, 400)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    told = "task mine: label '１': target '１' cannot be spelled by tokenizer .*labels_text"
    with pytest.raises(DataError, match=told):
        label_answers(task(labels=["1", "１"]), ChatTokenizer(tokenizer))
    spelled = task(labels=["1", "１"], labels_text={"１": "one"})
    assert len({tuple(answer.ids) for answer in label_answers(spelled, ChatTokenizer(tokenizer)).values()}) == 2
