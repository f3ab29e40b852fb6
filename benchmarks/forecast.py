"""Is what `kdsuite plan` says of time true? Forecast and measured seconds of training, evaluation and caching.

Each model is trained with adapters on, and evaluated on, two tasks whose texts have the lengths of SST-2's and SQuAD's;
a teacher's outputs and answers are cached. The forecast is calibrated anew right before and right behind what it is
compared with (the mean counts), as other programs on the machine change both. With its one thread this program tells
the time by its own CPU seconds. The suite's own jobs do the work, as `kdsuite run` has them do it; loading and
encoding, which a plan leaves out, are done before.

    python benchmarks/forecast.py [--quick] [--model FOLDER …] [--teacher FOLDER] [--dtype bfloat16]
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from measure import Finding, arguments, asked, keep, machine, table
from shapes import PROMPTS

from kdsuite.config import TEACHER, Settings
from kdsuite.extras.offline.corpora import film_opinions, passages, pretraining_text
from kdsuite.extras.offline.models import byte_level_tokenizer, tiny_llama
from kdsuite.forecast.build import this_machine
from kdsuite.forecast.scene import Scene
from kdsuite.forecast.times import learning_seconds, run_seconds, teacher_rows
from kdsuite.jobs.asking import build_teacher_outputs
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded, evaluation_set
from kdsuite.jobs.models import base, teacher_model
from kdsuite.jobs.training import execute
from kdsuite.models.loading import save_trained
from kdsuite.plan import RunSpec, expand
from kdsuite.runtime.device import choose
from kdsuite.runtime.progress import Progress
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.sizes import CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS

Seconds = Callable[[], float]
Row = tuple[str, str, str, float, float]
FEW, MANY = (12, 4, 12), (240, 8, 240)  # examples of train, dev and the reported split; many for the tiny model
WITHIN = 2.0  # times too much or too little that a plan may be wrong
HEADER = ("model", "task", "stage", "forecast s", "measured s", "forecast / measured")


def write_data(folder: Path, train: int, count: int) -> None:
    """`count` texts of the official lengths, a question to each passage, `train` of them for training."""
    random = Random(0)
    rows = film_opinions(count, seed=0)
    for name, some in (("train.tsv", rows[:train]), ("dev.tsv", rows[train:])):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["sentence", "label"])
            writer.writerows([row["sentence"], int(row["label"] == "positive")] for row in some)
    asked = passages(20 * count, seed=0)
    articles = []
    for number in range(count):
        row = asked[20 * number]
        tokens = random.choice(PROMPTS["SQuAD"][1:]) - TEMPLATE_TOKENS
        context = str(row["context"])
        while len(context) < tokens * CHARACTERS_PER_TOKEN - 120:  # question and instruction
            context += " " + str(random.choice(asked)["context"])
        answer = {"text": row["answer"], "answer_start": row["answer_start"]}
        question = {"id": str(number), "question": row["question"], "answers": [answer]}
        articles.append({"title": str(number), "paragraphs": [{"context": context, "qas": [question]}]})
    for name, some in (("train-v1.1.json", articles[:train]), ("dev-v1.1.json", articles[train:])):
        (folder / name).write_text(json.dumps({"version": "1.1", "data": some}), encoding="utf-8")


def tiny(folder: Path) -> str:
    """A Llama of the offline size."""
    torch.manual_seed(0)
    tokenizer = byte_level_tokenizer(pretraining_text(500, seed=0), 1600)
    folder.mkdir()
    save_trained(tiny_llama(tokenizer, 64, 2, 4), ChatTokenizer(tokenizer), folder)
    return str(folder)


def settings_of(student: str, teacher: str, data: Path, dtype: str, sizes: Sequence[int]) -> Settings:
    training = {"epochs": 1, "batch_size": 8, "micro_batch_size": 4}
    names = ("train_size", "dev_size", "validation_size")
    sst2 = {"source": str(data), "training": training, **dict(zip(names, sizes, strict=True))}
    squad = {"max_length": 512, "max_new_tokens": 16, "training": {**training, "micro_batch_size": 2}}
    tree: dict[str, Any] = {
        "threads": 1,
        "device": "cpu",
        "dtype": dtype,
        "seeds": [1],
        "methods": ["B0", "KD1", "KD2"],
        "tasks": {"sst2": sst2, "squad": sst2 | squad},
        "models": {"teacher": {"name": teacher, "batch_size": 4}, "students": {"S1": {"name": student}}},
        "evaluation": {"batch_size": 8},
        "kd1": {"temperatures": [2.0], "alphas": [0.5]},
    }
    return Settings.model_validate(tree)


class Study:
    """A configuration at work; `rows` are model, task, stage, forecast and measured seconds."""

    def __init__(self, settings: Settings, results: Path):
        self.settings, self.specs = settings, expand(settings)
        self.bench = Bench(settings, results, choose("cpu", settings.dtype, 1), Progress.silent())
        self.rows: list[Row] = []

    @property
    def scene(self) -> Scene:
        """Its machine is calibrated anew."""
        return Scene.of(self.settings, self.specs, this_machine(self.bench.choice))

    def compare(
        self, model: str, task: str, stage: str, foretell: Callable[[], float], work: Callable[[], float]
    ) -> None:
        before, measured = foretell(), work()
        told = (before + foretell()) / 2
        self.rows.append((Path(model).name, task, stage, told, measured))
        print(*self.rows[-1][:3], f"{told:.1f} s by the forecast, {measured:.1f} s", file=sys.stderr, flush=True)

    def train(self, task: str) -> None:
        """With B0, and evaluate the student as it was."""
        bench, name = self.bench, self.settings.models.students["S1"].name
        spec = next(s for s in self.specs if (s.task, s.method) == (task, "B0"))
        zero = RunSpec("zero-shot", task, "S1")
        for split in ("dev", "validation"):
            evaluation_set(bench, task, "S1", split)
        base(bench, "S1")

        def seconds(spec: RunSpec, stage: str) -> float:
            return execute(bench, spec)["timing"][f"{stage}_seconds"]

        self.compare(name, task, "training", lambda: learning_seconds(self.scene, spec), lambda: seconds(spec, "train"))
        self.compare(name, task, "evaluation", lambda: run_seconds(self.scene, zero), lambda: seconds(zero, "evaluate"))

    def cache(self, task: str) -> None:
        """The teacher's outputs and answers."""

        def foretell() -> float:
            return sum(row.seconds or 0.0 for row in teacher_rows(self.scene, task))

        def cached() -> float:
            started = time.perf_counter()
            build_teacher_outputs(self.bench, task)
            return time.perf_counter() - started

        encoded(self.bench, task, TEACHER, "train")
        teacher_model(self.bench, task)
        self.compare(self.settings.models.teacher.name, task, "caching", foretell, cached)


def study(
    student: str, teacher: str, dtype: str, sizes: Sequence[int], trains: bool = True, asks: bool = True
) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name), sum(sizes[:2]), sum(sizes))
        made = Study(settings_of(student, teacher, Path(name), dtype, sizes), Path(name) / "results")
        for task in made.settings.tasks:
            if trains:
                made.train(task)
            if asks:
                made.cache(task)
        made.bench.forget()
    return made.rows


def main() -> None:
    parser = arguments(__doc__, 1)
    parser.add_argument("--model", action="append", default=[], help="folder of a model to be trained; repeatable")
    parser.add_argument("--teacher", help="folder of a model to be asked")
    parser.add_argument("--dtype", default="auto", help="as in a configuration (default auto)")
    options = asked(parser)
    time.perf_counter = time.process_time  # the suite's clocks too: what else the machine does counts on neither side
    with tempfile.TemporaryDirectory() as folder:
        small = tiny(Path(folder) / "tiny")
        measured = study(small, small, options.dtype, FEW if options.quick else MANY)
        for model in [] if options.quick else options.model:
            measured += study(model, options.teacher or model, options.dtype, FEW, asks=False)
        if options.teacher and not options.quick:
            measured += study(options.teacher, options.teacher, options.dtype, FEW, trains=False)
    rows = [[*names, f"{told:.2f}", f"{took:.2f}", f"{told / took:.2f}"] for *names, told, took in measured]
    print(f"{machine()}\n\n{table(HEADER, rows)}")
    keep(
        [
            Finding.of_values(
                f"forecast of {stage}, {model}", task, "time", "×", [max(told / took, took / told)], at_most=WITHIN
            )
            for model, task, stage, told, took in measured
        ],
        options.findings,
    )


if __name__ == "__main__":
    main()
