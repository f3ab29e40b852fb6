"""A run's evaluation as a task of EleutherAI's lm-evaluation-harness, for `lm_eval --include_path DIR`, offline.

For tasks with labels. The harness gets prompts that are rendered already, so that it applies no chat template; a
label's continuation is the label with what ends the turn, so that it adds up the very log-probabilities that
`label_scores` does. It may move blanks and line breaks at a prompt's end into every continuation: the same amount for
all labels, which changes no choice. Whatever it would tokenize otherwise is refused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kdsuite.config import TEACHER, Settings
from kdsuite.errors import DataError, SettingsError
from kdsuite.evaluate.selection import Record
from kdsuite.extras.card import plan_of
from kdsuite.extras.export import completed
from kdsuite.models.loading import load_chat
from kdsuite.models.source import ModelSource
from kdsuite.store.files import atomic_folder, read_rows
from kdsuite.store.layout import PREDICTIONS, Layout
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode
from kdsuite.tasks.example import Example, Task, task_of

DATA, LOADER = "data.jsonl", "data.py"
READER = f'''"""Written by kdsuite: the examples beside this file."""

import json
from pathlib import Path

import datasets


def load(**_):
    lines = Path(__file__).with_name("{DATA}").read_text(encoding="utf-8").split("\\n")
    return {{"test": datasets.Dataset.from_list([json.loads(line) for line in lines if line])}}
'''


def task_files(results: Path, run_id: str, model: Path, whole: bool) -> tuple[str, dict[str, str]]:
    """The command that repeats a completed run's evaluation, and the files of its folder by name.

    `model` is where the run's model is exported to, `whole` whether an adapter is merged there. SettingsError where
    answers are generated, or the run is not of the plan there is; DataError where the harness would read a prompt
    otherwise.
    """
    layout, record = Layout(results), completed(results, run_id)
    spec, settings = record["spec"], _settings(layout, record)
    kind = task_of(spec["task"], settings.tasks[spec["task"]])
    if not kind.labels:
        raise SettingsError(f"--lm-eval is for tasks with labels; the answers of {spec['task']} are generated")
    kind.shots = _examples(layout, kind.name, "shots")
    examples = _examples(layout, kind.name, "validation")
    said = read_rows(layout.run(run_id) / PREDICTIONS)
    if [row["id"] for row in said] != [example.id for example in examples]:
        raise DataError(f"{layout.processed(kind.name)} holds other examples than {run_id} was evaluated on")
    named = settings.models.teacher if spec["method"] == TEACHER else settings.models.students[spec["student"]]
    prompts = named.model_dump(include={"system", "chat_template_kwargs"})
    source = replace(ModelSource.at(str(layout.model(run_id))), prompts=prompts)
    rows = list(rows_of(kind, load_chat(source), examples))
    adapter = f"pretrained={source.whole.where},peft={model},tokenizer={model}"
    where = adapter if source.base and not whole else f"pretrained={model}"
    arguments = f"{where},dtype={record['environment']['dtype']},add_bos_token=False"  # prompts begin as rendered
    command = f"lm_eval --model hf --model_args {arguments} --tasks kdsuite_{kind.name} --include_path"
    return command, {
        DATA: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        LOADER: READER,
        f"kdsuite_{kind.name}.yaml": _task_file(kind, record, command),
    }


def write(files: Mapping[str, str], out: Path) -> None:
    with atomic_folder(out) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")


def rows_of(task: Task, chat: ChatTokenizer, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """Per example the prompt, a continuation per label, and the right label's place; a list of places wherever some
    example has several. DataError names an example that is not read from these texts as it was evaluated.
    """
    labels, several = list(task.labels or ()), any(len(example.references) > 1 for example in examples)
    choices = [chat.template.written(text) + chat.ending for text in (task.labels or {}).values()]
    for example, encoded in zip(examples, encode(task, chat, examples), strict=True):
        prompt = chat.template.prompt(task.messages(example))
        if not _read_alike(chat, encoded, prompt, choices):
            raise DataError(
                f"example {example.id}: lm-evaluation-harness would tokenize its prompt with a label otherwise than it "
                "was evaluated; the run cannot be repeated there"
            )
        gold = [labels.index(label) for label in example.references]
        yield {"id": example.id, "prompt": prompt, "choices": choices, "gold": gold if several else gold[0]}


def _read_alike(chat: ChatTokenizer, encoded: Encoded, prompt: str, choices: Sequence[str]) -> bool:
    """Whether the harness, which tokenizes prompt and label as one text and the stripped prompt alone, gets the ids
    that were scored, and all supervised ones behind the prompt.
    """
    alone = chat.tokenizer(prompt.rstrip(), add_special_tokens=False)["input_ids"]
    whole = chat.tokenizer([prompt + choice for choice in choices], add_special_tokens=False)["input_ids"]
    scored = [[t for t, c in zip(encoded.targets, encoded.choices, strict=True) if c == k] for k in range(len(choices))]
    return len(alone) <= len(encoded.prompt) and whole == [encoded.prompt + ids for ids in scored]


def _settings(layout: Layout, record: Record) -> Settings:
    plan = plan_of(layout)
    planned = {run["run_id"]: run["fingerprint"] for run in plan.get("runs", ())}
    if planned.get(record["run_id"]) != record["fingerprint"]:
        raise SettingsError(
            f"{record['run_id']} is not of the plan in {layout.plan}; run `kdsuite run` with its settings"
        )
    return Settings.model_validate(plan["settings"])


def _examples(layout: Layout, task: str, split: str) -> list[Example]:
    path = layout.processed(task) / f"{split}.jsonl"
    if not path.exists():
        if split == "shots":
            return []
        raise DataError(f"{path} is missing; run `kdsuite prepare` again")
    return [*map(Example.from_json, read_rows(path))]


def _task_file(task: Task, record: Record, command: str) -> str:
    about = {
        "task": f"kdsuite_{task.name}",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0, "run": record["run_id"], "accuracy": record["metrics"]["validation"]["accuracy"]},
    }
    accuracy = record["metrics"]["validation"]["accuracy"]
    head = (
        f"# {command} DIR\n# Prompts are rendered: no --apply_chat_template. The run's accuracy is {accuracy:.4f} %.\n"
    )
    return f"{head}custom_dataset: !function data.load\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}"
