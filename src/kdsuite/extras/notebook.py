"""What the notebooks call: a configuration's suite, whose methods do stages and return tables and figures.

Nothing is kept here that is not on disk: a table or a figure is made of the results folder each time it is
asked for, so that every notebook can be opened alone. Stages and commands are those of the command line.
"""

from kdsuite.runtime.process import silence

silence()  # before the libraries are imported, whose chatter it is

import html
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdsuite import cli, pipeline
from kdsuite.config import CONFIGS, TEACHER, load
from kdsuite.errors import RunError, SettingsError
from kdsuite.jobs import data, models, teaching
from kdsuite.jobs.bench import Bench
from kdsuite.plan import expand
from kdsuite.report import drawing
from kdsuite.report.analysis import analyse
from kdsuite.report.figures import FIGURES, data_curves
from kdsuite.report.load import load as load_results
from kdsuite.runtime import device
from kdsuite.runtime.environment import capture
from kdsuite.runtime.progress import Progress
from kdsuite.store.layout import HISTORY, NARRATIVE, Layout
from kdsuite.tasks.encoding import Encoded

NOTEBOOKS = "notebooks"
NAMED = {"offline": ("offline.yaml", None), "fast": ("experiment.yaml", "fast"), "full": ("experiment.yaml", "full")}
SPLITS = ("train", "dev", "validation", "teacher_train")
SHARES = ("aligned", "vocabulary", "mass")  # of the teacher's outputs, that reach a student


class Figure:
    """Drawn figures as a notebook shows them: vector graphics below each other, each with its caption."""

    def __init__(self, *drawn: drawing.Canvas):
        self.graphics = [drawing.for_page(one) for one in drawn]
        self.captions = [one.caption for one in drawn]

    def __repr__(self) -> str:
        return "\n".join(self.captions)

    def _repr_html_(self) -> str:
        return "\n".join(
            f'<figure style="max-width: 34em; margin: 1em 0">{graphic}'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for graphic, caption in zip(self.graphics, self.captions, strict=True)
        )


class Text(str):
    """Markdown that a notebook renders."""

    def _repr_markdown_(self) -> str:
        return self


class Suite:
    """One configuration, by name (`offline`, `fast`, `full`) or YAML file, and its results folder.

    The working folder becomes the one that holds `notebooks/`, so that `.env`, data folders and results are
    found where the command line finds them. `offline` shares `results/` with `make run`; every other
    configuration has `results-<name>/`.
    """

    def __init__(self, configuration: str = "offline"):
        pd.set_option("display.max_colwidth", 160)
        if Path.cwd().name == NOTEBOOKS:
            os.chdir("..")
        file, self.mode = NAMED.get(configuration, (configuration, None))
        self.config = CONFIGS / file if configuration in NAMED else Path(file)
        if configuration not in NAMED and not self.config.is_file():
            raise SettingsError(f"{configuration!r} is neither a YAML file nor one of {', '.join(NAMED)}")
        self.settings = load(self.config, mode=self.mode, env_file=Path(".env"))
        name = "" if configuration == "offline" else f"-{Path(configuration).stem}"
        self.results = Path(f"results{name}")
        self.layout = Layout(self.results)

    # --- doing

    def command(self, name: str, *options: str) -> None:
        """Do what `kdsuite <name> <options>` does with this configuration, and print what it prints."""
        what = ["--config", str(self.config), *(["--mode", self.mode] if self.mode else [])]
        where = ["--results", str(self.results)] if name != "plan" else []
        if cli.main([name, *what, *where, *options]) == SettingsError.exit_code:
            raise SettingsError(f"kdsuite {name} could not be done; the line above says why")

    def run(self, *stages: str, tasks: Sequence[str] | None = None, methods: Sequence[str] | None = None) -> None:
        """Do stages, going on with what is there. RunError, naming them, if runs failed."""
        progress = Progress(stream=sys.stdout, live=False)
        outcome = pipeline.run(self.settings, self.results, stages, tasks, methods, progress=progress)
        vars(self).pop("bench", None)  # what it knows may be different now
        print(f"{outcome.completed} completed, {outcome.skipped} done before, {len(outcome.failed)} failed")
        if outcome.failed:
            raise RunError("; ".join(f"{run_id}: {reason}" for run_id, reason in outcome.failed))

    # --- the machine and the plan

    def environment(self) -> pd.DataFrame:
        """What the results will depend on besides the settings, and why this device and dtype."""
        facts = capture(self.bench.choice)
        shown = {"python": facts["python"]}
        shown |= {name: facts["libraries"][name] for name in ("torch", "transformers", "peft")}
        shown |= {what: f"{facts[what]} ({facts[f'{what}_reason']})" for what in ("device", "dtype")}
        shown |= {"threads": facts["threads"], "memory": f"{facts['memory_mb'] / 1e3:.0f} GB"}
        return pd.DataFrame({"": shown})

    def plan(self) -> pd.DataFrame:
        """How many runs the configuration asks for, by method and task."""
        runs = pd.DataFrame([spec.as_dict() for spec in expand(self.settings)])
        return pd.crosstab(runs["method"], runs["task"], margins=True, margins_name="all")

    # --- data

    def sizes(self, task: str) -> pd.DataFrame:
        """Per split: examples, groups (passages, repeated sentences), targets, words of the inputs."""
        splits = data.splits(self.bench, task)
        rows = {}
        for name in (name for name in SPLITS if name in splits):
            targets = pd.Series([e.target for e in splits[name]])
            rows[name] = {
                "examples": len(targets),
                "groups": len({e.group for e in splits[name]}),
                "different targets": targets.nunique(),
                "share of the most frequent": targets.value_counts(normalize=True).max(),
                "words (median)": np.median([len(" ".join(e.inputs.values()).split()) for e in splits[name]]),
            }
        return pd.DataFrame(list(rows.values()), list(rows)).round(2)

    def examples(self, task: str, split: str = "train", count: int = 5) -> pd.DataFrame:
        """The first examples of a split: their inputs, target and references."""
        shown = data.splits(self.bench, task)[split][:count]
        rows = [{**e.inputs, "target": e.target, "references": " | ".join(e.references)} for e in shown]
        return pd.DataFrame(rows, [e.id for e in shown])

    def prompt(self, task: str, role: str) -> None:
        """Print the first training example as a model reads it, in that model's own chat template."""
        example = data.splits(self.bench, task)["train"][0]
        messages = data.task(self.bench, task).messages(example)
        print(models.chat(self.bench, role).template.prompt(messages) + example.target)

    def supervised(self, task: str) -> pd.DataFrame:
        """The supervised positions of the first training example, in the tokens of every model.

        `bytes` is the span of the target that the token covers: what ties teacher and student together.
        """
        target = data.splits(self.bench, task)["train"][0].target.encode()
        rows = []
        for role in self.settings.roles:
            encoded = data.encoded(self.bench, task, role, "train")[0]
            tokenizer, gold = models.chat(self.bench, role).tokenizer, encoded.gold_slice
            for source, token, (start, end) in zip(
                encoded.sources[gold], encoded.targets[gold], encoded.spans[gold], strict=True
            ):
                text = target[max(start, 0) : max(end, 0)].decode(errors="replace")
                row = {"model": role, "predicted from position": f"{source + 1} of {len(encoded)}"}
                row |= {"token": text or tokenizer.decode([token]), "id": token, "bytes": f"{start}–{end}"}
                rows.append(row)
        return pd.DataFrame(rows).set_index(["model", "predicted from position"])

    def lengths(self, task: str) -> Figure:
        """How many tokens a training example has in each model, against the longest that is allowed."""
        longest = self.settings.tasks[task].max_length
        caption = f"Training examples by tokens, prompt and target; {longest} is the longest allowed."
        with drawing.styled():
            target, [[axes]] = drawing.canvas(f"lengths_{task}", "Lengths", caption, [1.8])
            for role in self.settings.roles:
                lengths = [len(e) for e in data.encoded(self.bench, task, role, "train")]
                color = drawing.look("teacher" if role == TEACHER else "KD1").color
                axes.hist(lengths, bins=30, alpha=0.6, color=color, label=role)
            axes.axvline(longest, color=drawing.FAINT, linewidth=0.8, linestyle=":")
            title = data.task(self.bench, task).settings.title or task
            axes.set(title=title, xlabel="tokens", ylabel="examples")
            axes.legend()
        return Figure(target)

    # --- the teacher

    def teacher(self, task: str) -> pd.DataFrame:
        """The teacher's answers on the training examples, in percent, and what of its outputs reaches a student."""
        quality, kind = teaching.quality(self.bench, task), data.task(self.bench, task)
        measured = {k: quality[k] for k in (kind.metric, kind.secondary_metric) if k in quality}
        measured |= {"answers kept": 100 * quality["kept_share"]} if "kept_share" in quality else {}
        for student, shares in quality.get("coverage", {}).items():
            measured |= {f"{student}: {what} covered": 100 * shares[what] for what in SHARES}
        return pd.DataFrame({f"{task}, %": measured}).round(1)

    def answers(self, task: str, count: int = 8) -> pd.DataFrame:
        """The teacher's first answers, raw and cleaned, beside the gold target."""
        gold = {e.id: e.target for e in data.splits(self.bench, task)["train"]}
        rows = [row | {"target": gold[row["id"]]} for row in teaching.answers(self.bench, task)[:count]]
        table = pd.DataFrame(rows, columns=["id", "raw", "answer", "target", "confidence"])
        return table.set_index("id").round(2)

    def softened(self, task: str, count: int = 5) -> pd.DataFrame:
        """The teacher's distribution where a training example's target begins, in percent, at every T of the grid.

        The example is one of the first hundred of which the teacher is rather, but not quite sure (near 80 %).
        """
        said = [self._distributions(task, e) for e in data.encoded(self.bench, task, TEACHER, "train")[:100]]
        chosen = min(said, key=lambda table: abs(float(table["T = 1"].iloc[0]) - 80))
        return chosen.head(count).round(1)

    def _distributions(self, task: str, example: Encoded) -> pd.DataFrame:
        record = teaching.teacher_cache(self.bench, task)[example.id]
        temperatures = (1.0, *teaching.output_settings(self.bench, task).temperatures)
        if labels := data.task(self.bench, task).labels:
            scaled = [np.asarray(record["class_scores"], float) / t for t in temperatures]
            logs, names = [x - np.logaddexp.reduce(x) for x in scaled], list(labels)
        else:
            normalisers = record["logsumexp"][0]
            logits = record["topk_logprobs"][0] + normalisers[0]
            logs = [logits / t - normaliser for t, normaliser in zip(temperatures, normalisers, strict=True)]
            tokenizer = models.chat(self.bench, TEACHER).tokenizer
            names = [repr(tokenizer.decode([i])) for i in record["topk_ids"][0]]
        columns = {f"T = {t:g}": 100 * np.exp(log) for t, log in zip(temperatures, logs, strict=True)}
        table = pd.DataFrame(columns, pd.Index(names, name=example.id))
        return table.sort_values("T = 1", ascending=False)

    # --- runs

    def runs(self, *methods: str) -> pd.DataFrame:
        """The completed runs of some methods: dev and reported metrics in percent, time and memory."""
        rows = []
        for record in self._records(methods):
            task, timing = record["spec"]["task"], record.get("timing") or {}
            metrics, metric = record.get("metrics") or {}, data.task(self.bench, task).metric
            row = {"task": task, "run": record["run_id"], "status": record["status"], "metric": metric}
            row |= {split: metrics.get(split, {}).get(metric) for split in ("dev", "validation")}
            row["best epoch"] = (record.get("selection") or {}).get("epoch")
            row |= {"training, s": timing.get("train_seconds"), "peak memory, MB": timing.get("peak_memory_mb")}
            rows.append(row)
        if not rows:
            raise RunError(f"no run of {', '.join(methods)} in {self.results}; train them first")
        table = pd.DataFrame(rows).astype({"best epoch": "Int64"})
        table = table.set_index(["task", "run"]).sort_index().round(1)
        return table.astype(object).where(table.notna(), "")

    def losses(self, *methods: str) -> Figure:
        """The training loss over the steps, a panel per task, a line per run."""
        tasks = tuple(self.settings.tasks)
        caption = "Training loss in nats per supervised token, a line per run; methods minimise different losses."
        with drawing.styled():
            name, heights = "_".join(["losses", *methods]), [1.5] * len(tasks)
            target, rows = drawing.canvas(name, "Training loss", caption, heights, base=0.5)
            panels = dict(zip(tasks, rows, strict=True))
            for task, (axes,) in panels.items():
                title = data.task(self.bench, task).settings.title or task
                axes.grid(True)
                axes.set(title=title, xlabel="step", ylabel="loss")
            for record in self._records(methods):
                spec, history = record["spec"], self.layout.run(record["run_id"]) / HISTORY
                if history.exists():  # what is only evaluated has none
                    steps, look = pd.read_csv(history).dropna(subset=["loss"]), drawing.look(spec["method"])
                    (axes,) = panels[spec["task"]]
                    axes.plot(steps["step"], steps["loss"], look.line, color=look.color, linewidth=0.7)
            drawing.legend_below(target, map(drawing.handle, methods), methods)
        return Figure(target)

    def _records(self, methods: Sequence[str]) -> list[dict[str, Any]]:
        """Of the configuration's tasks, whatever else was run in this folder."""
        specs = ((record, record["spec"]) for record in self.bench.registry.records())
        return [record for record, of in specs if of["method"] in methods and of["task"] in self.settings.tasks]

    # --- the report

    def figures(self, *names: str) -> Figure:
        """Figures of the report by name (`kd_comparison`, `learning_curves`, …), of what there is now."""
        known = {make.__name__: make for make in (*FIGURES, data_curves)}
        analysis = analyse(load_results(self.results), self.settings.report)
        with drawing.styled():
            return Figure(*(known[name](analysis) for name in names))

    def table(self, name: str) -> pd.DataFrame:
        """A table of `summary/`, by the name of its file."""
        return pd.read_csv(self.layout.summary / f"{name}.csv", keep_default_na=False)

    def findings(self) -> Text:
        """The results in words, as the report states them."""
        return Text((self.layout.summary / NARRATIVE).read_text(encoding="utf-8"))

    # --- what they share

    @cached_property
    def bench(self) -> Bench:
        """Where the configuration's jobs work, and what they made of it so far."""
        choice = device.choose(self.settings.device, self.settings.dtype, self.settings.threads)
        return Bench(self.settings, self.results, choice, Progress.silent())
