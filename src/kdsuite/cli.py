"""The commands: parse, call the pipeline, print. No logic of its own.

Whatever is expected to go wrong ends as one line on stderr and an exit code (0 done, 1 something failed,
2 usage or configuration, 130 Ctrl-C); the traceback of anything else goes to a file that the line names.
Results go to stdout, progress to stderr. The pipeline is imported inside the commands: it brings torch
along, and `--help` should not wait for that.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdsuite import __version__
from kdsuite.errors import KdsuiteError, StorageError, without_token
from kdsuite.runtime.process import check_supported, never_fail, sigterm_as_ctrl_c, silence

if TYPE_CHECKING:
    from kdsuite.config import Settings
    from kdsuite.plan import RunSpec

INTERRUPTED = 130

app = typer.Typer(
    help="Knowledge distillation of causal language models, from raw data to tables, figures and a report.",
    epilog="Exit codes: 0 all done, 1 something failed, 2 usage, configuration, data or disk, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _option(metavar: str, help: str, file_okay: bool = True) -> Any:
    return typer.Option(metavar=metavar, help=help, file_okay=file_okay)


Results = Annotated[Path, _option("DIR", "Where everything is written and found.", file_okay=False)]
RESULTS = Path("results")
MODELS = (
    "Measure this model instead, a save_pretrained or adapter folder or a hub id, and keep it in tables and figures "
    "beside the plan's; repeatable."
)
EXECUTOR = "Where jobs are done: serial (default), N processes side by side, a Ray cluster, or N workers of Slurm."
Texts = list[str] | None


@dataclass(frozen=True)
class Asked:
    """The options that commands share. What a command does not offer keeps its default."""

    config: Annotated[Path | None, _option("FILE", "Configuration (YAML); default: the offline one.")] = None
    mode: Annotated[str | None, _option("fast|full", "One of the configuration's modes, if it has any.")] = None
    task: Annotated[Texts, _option("TASK", "Only this task of the configuration, by name; repeatable.")] = None
    method: Annotated[Texts, _option("METHOD", "Only this method of the configuration, e.g. KD1; repeatable.")] = None
    models: Annotated[Texts, _option("MODEL", MODELS)] = None
    set: Annotated[Texts, _option("KEY=VALUE", "Override a key, e.g. tasks.sst2.train_size=100; repeatable.")] = None
    results: Results = RESULTS
    executor: Annotated[str, _option("serial|processes[:N]|ray[:HOST:PORT]|slurm[:N]", EXECUTOR)] = "serial"

    def settings(self) -> Settings:
        from kdsuite import config

        return config.load(self.config, mode=self.mode, sets=self.set or (), env_file=Path(".env"))

    def plan(self) -> tuple[Settings, list[RunSpec]]:
        """The settings, and the runs they ask for; a misspelt task or method is told before torch is loaded."""
        from kdsuite.plan import expand, refuse_gaps, refuse_unspreadable
        from kdsuite.teacher.base import at_most

        settings = self.settings()
        specs = expand(settings, self.task, self.method)
        refuse_gaps(settings, specs, at_most(settings.models.teacher))
        refuse_unspreadable(settings, specs)
        return settings, specs

    def run(self, *stages: str) -> int:
        """Do stages, by default all, and print what was done, the best, where it is, what failed."""
        from kdsuite.runtime.progress import Progress

        settings, _ = self.plan()
        from kdsuite import pipeline

        narrowed = {"tasks": self.task, "methods": self.method, "models": self.models or ()}
        how = {"progress": Progress(), "executor": pipeline.executor_of(self.executor)}
        outcome = pipeline.run(settings, self.results, stages or pipeline.STAGES, **narrowed, **how)
        print(f"{outcome.completed} completed, {outcome.skipped} done before, {len(outcome.failed)} failed")
        for line in [*outcome.summary_lines, f"results: {self.results}"]:
            print(line)
        for run_id, reason in outcome.failed:
            print(f"failed: {run_id}: {reason}", file=sys.stderr)
        return 1 if outcome.failed else 0


def _command(shared: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a function of `Asked` and of options of its own a command with these of the shared options."""
    names = shared.split()

    def register(function: Callable[..., int]) -> Callable[..., int]:
        def command(**given: Any) -> int:
            asked = Asked(**{name: given.pop(name) for name in names})
            with _traceback_to_file(asked.results):
                return function(asked, **given)

        known = inspect.signature(Asked, eval_str=True).parameters
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in [*map(known.__getitem__, names), *own]]
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(function.__name__, help=function.__doc__)(command)
        return function

    return register


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; this is the console script."""
    arguments = sys.argv[1:] if arguments is None else arguments
    never_fail(sys.stdout, sys.stderr)
    silence()  # before any library is imported, by us or by a method from another package
    try:
        with sigterm_as_ctrl_c():
            code = app(arguments or ["--help"], prog_name="kdsuite", standalone_mode=False) or 0
    except KeyboardInterrupt:  # outside of a command; inside of one, typer makes it the exit code
        code = INTERRUPTED
    except (KdsuiteError, typer.TyperException) as error:  # typer names the nearest valid command or option
        message = str(error) if isinstance(error, KdsuiteError) else error.format_message()
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return error.exit_code
    if code == INTERRUPTED:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
    return code


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"kdsuite {__version__}")
        return
    check_supported()


@_command("config mode task method set results executor")
def run(asked: Asked) -> int:
    """All stages, from the data to the report; what is there already is not done again."""
    return asked.run()


@_command("config mode task set results")
def prepare(asked: Asked) -> int:
    """Load or generate the examples and split them."""
    return asked.run("prepare")


@_command("config mode task method set results executor")
def cache(
    asked: Asked,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Only say what is cached: models, data, quality, coverage, size.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only that, and hash every cached file again.")] = False,
    imported: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Take answers or outputs of one task from a file.")
    ] = None,
) -> int:
    """Ask the teacher and keep its outputs, as far as the methods need them."""
    if imported is not None:
        settings, specs = asked.plan()
        names = list(dict.fromkeys(spec.task for spec in specs))
        if len(names) > 1:
            raise typer.BadParameter(f"say of which task it is: --task {' or '.join(names)}", param_hint="--import")
        from kdsuite import pipeline
        from kdsuite.runtime.progress import Progress

        print(pipeline.import_cache(settings, asked.results, names[0], imported, Progress()))
        return 0
    if not (inspect or verify):
        return asked.run("cache")
    from kdsuite.teacher import inspection

    lines, damaged = inspection.inspect(asked.results, verify)
    print("\n".join(lines))
    for problem in damaged:
        print(f"damaged: {problem}; `kdsuite cache` makes it anew", file=sys.stderr)
    return 1 if damaged else 0


@_command("config mode task method set results executor")
def train(asked: Asked) -> int:
    """Train and evaluate the planned runs that are not completed."""
    return asked.run("train")


@_command("config mode task models set results")
def benchmark(asked: Asked) -> int:
    """Measure latency, throughput, memory and size of the models."""
    return asked.run("benchmark")


@_command("config mode task set results")
def report(
    asked: Asked,
    compare: Annotated[
        tuple[Path, Path] | None, _option("A B", "Print two results folders side by side instead.", file_okay=False)
    ] = None,
    format: Annotated[
        Literal["md", "html"] | None,
        typer.Option(
            "--format", help="Write it for a thesis, too: report.md, or report-plain.html to open in a word processor."
        ),
    ] = None,
) -> int:
    """Write tables, figures and report.html from the runs there are."""
    if compare is None:
        code = asked.run("report")
        if format:
            written = import_module("kdsuite.report.document").write(asked.results, asked.settings().report, format)
            print(f"for a thesis: {written}")
        return code
    if format:
        raise typer.BadParameter("a comparison is printed only", param_hint="--format")
    from kdsuite.report.compare import compare as side_by_side

    print("\n".join(side_by_side(*compare, asked.settings().report).lines))
    return 0


@_command("results")
def export(
    asked: Asked,
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A completed run, named as its folder in raw_runs.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base model.")] = False,
    quantize: Annotated[
        Literal["int8", "int4"] | None, typer.Option("--quantize", help="Quantize the weights; merges an adapter, too.")
    ] = None,
    format: Annotated[
        Literal["gguf", "gguf-f32"] | None,
        typer.Option("--format", help="One file for llama.cpp and Ollama, in f16 or in f32; merges an adapter, too."),
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the model card alone, without weights.")] = False,
    push: Annotated[
        str | None, _option("OWNER/NAME", "Then upload the folder to this repository of the hub; a new one is private.")
    ] = None,
    lm_eval: Annotated[
        Path | None,
        _option("DIR", "Beside it, a task file with which lm_eval repeats the run's accuracy; a new folder."),
    ] = None,
) -> int:
    """Write a run's model as a standalone folder that plain transformers loads, with a model card."""
    from kdsuite.runtime import device

    hub, results = import_module("kdsuite.extras.push"), asked.results
    if push is not None:
        hub.check(push)
    gguf = {"gguf": "f16", "gguf-f32": "f32", None: None}[format]
    exporting, harness = (import_module(f"kdsuite.extras.{name}") for name in ("export", "lm_eval_task"))
    command, files = "", {}
    if lm_eval is not None:
        if card or format:
            raise typer.BadParameter("it goes with weights for transformers", param_hint="--lm-eval")
        if folder.resolve().is_relative_to(lm_eval.resolve()):
            raise typer.BadParameter("it would take the place of the model; give another", param_hint="--lm-eval")
        exporting.refuse_taken(lm_eval)
        command, files = harness.task_files(results, run_id, folder, whole=merge or quantize is not None)
    exporting.export_run(results, run_id, folder, device.choose().device, merge, quantize, gguf, weights=not card)
    print(f"exported {run_id} to {folder}")
    if lm_eval is not None:
        harness.write(files, lm_eval)
        print(f"{command} {lm_eval}")
    if push is not None:
        print(f"pushed to {hub.push(folder, push, run_id)}")
    return 0


@_command("config mode task method set results")
def plan(
    asked: Asked,
    detect: Annotated[
        float | None, typer.Option("--detect", metavar="POINTS", help="Say what seeing such a gain would take.")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--machine", metavar="N×GPU", help="Reckon for another machine, as 8xH100-80GB.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> int:
    """What would run, how long, with how much disk and memory, and what it could show; what to change."""
    if detect is not None and not 0 < detect <= 100:
        raise typer.BadParameter(f"a gain is above 0 and up to 100 points, not {detect:g}", param_hint="--detect")
    settings, specs = asked.plan()
    from kdsuite.forecast.build import forecast, this_machine
    from kdsuite.forecast.evidence import evidence
    from kdsuite.forecast.paper import machine_of
    from kdsuite.forecast.rows import as_json, describe
    from kdsuite.runtime.device import choose

    if on is None:
        choice = choose(settings.device, settings.dtype, settings.threads)
        where, machine = str(choice), this_machine(choice)
    else:
        where, machine = f"on paper: {on}", machine_of(on)
    known = {}
    if asked.results.is_dir():  # where nothing was run, the report's libraries need not be imported
        from kdsuite.report.pilot import pilots

        known = pilots(asked.results, settings)
    expected = forecast(settings, specs, machine)
    expected = replace(expected, evidence=evidence(expected, settings.report, known, detect))
    print(as_json(expected, machine) if json else "\n".join([where, *describe(expected, machine)]))
    return 0


@_command("config mode task method set results")
def doctor(asked: Asked) -> int:
    """Check device, memory, disk, token and access to every model and data set; say what to do."""
    settings, specs = asked.plan()
    from kdsuite.forecast.doctor import examine
    from kdsuite.runtime.device import choose

    problems = 0
    choice = choose(settings.device, settings.dtype, settings.threads)
    for finding in examine(settings, specs, choice, asked.results):
        problems += finding.state == "problem"
        print(finding, flush=True)
    print(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "ready")
    return 1 if problems else 0


@_command("")
def init(
    asked: Asked,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration to be written.")] = Path("mine.yaml"),
    data: Annotated[str | None, _option("PATH", "Data: a file, or a folder of them.")] = None,
    kind: Annotated[str | None, _option("KIND", "classification, short_answer or generation.")] = None,
    input: Annotated[Texts, _option("COLUMN", "What the prompt is made of; repeatable.")] = None,
    target: Annotated[str | None, _option("COLUMN", "What is to be learned.")] = None,
    teacher: Annotated[str | None, _option("MODEL", "A folder or a hub id.")] = None,
    student: Annotated[str | None, _option("MODEL", "A folder or a hub id.")] = None,
    device: Annotated[str | None, _option("DEVICE", "auto, mps, cuda or cpu; default auto.")] = None,
) -> int:
    """Write a configuration for data of your own; what the options do not say is asked."""
    starter = import_module("kdsuite.extras.starter")
    wishes = starter.Wishes(data, kind, input or (), target, teacher, student, device)
    ask = (lambda question, proposed: typer.prompt(question, default=proposed or None)) if sys.stdin.isatty() else None
    print(starter.write(file, wishes, ask))
    return 0


@_command("config mode task set")
def task(
    asked: Asked,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A task file; default: the configuration's tasks.")
    ] = None,
) -> int:
    """Show a task as its models read it: splits, labels, leaks, lengths, and conversations token by token."""
    if file is not None:
        from kdsuite.config import name_from

        made = {name_from(file.stem) or "task": {"file": str(file)}}
        asked = replace(asked, task=None, set=[*(asked.set or ()), f"tasks={json.dumps(made, ensure_ascii=False)}"])
    settings = asked.settings()
    from kdsuite.plan import expand

    names = list(dict.fromkeys(spec.task for spec in expand(settings, asked.task)))
    from kdsuite.jobs.looking import LEARNED, look
    from kdsuite.runtime.device import choose

    choice = choose(settings.device, settings.dtype, settings.threads)
    coloured = typer.style(LEARNED, fg="green", bold=True) if sys.stdout.isatty() else LEARNED
    for line in look(settings, names, choice, coloured):
        print(line, flush=True)
    return 0


@_command("results")
def status(asked: Asked) -> int:
    """Runs by state, progress and time left."""
    from kdsuite.status import describe

    print("\n".join(describe(asked.results)))
    return 0


@app.command()
def study(
    do: Annotated[Literal["save", "verify"], typer.Argument(metavar="save|verify")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A study, e.g. studies/2026-11-27-sst2.", file_okay=False)
    ],
    results: Results = RESULTS,
) -> int:
    """Save what others need to check and repeat a results folder, or recompute a study's tables from what was saved."""
    with _traceback_to_file(results if do == "save" else Path(tempfile.gettempdir())):
        studies = import_module("kdsuite.extras.study")
        good, problems = studies.verify(folder) if do == "verify" else ([studies.save(folder, results)], [])
    print("\n".join(good))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


@contextmanager
def _traceback_to_file(results: Path) -> Iterator[None]:
    """Turn what nobody expected into one line that names the file with the traceback."""
    try:
        yield
    except (KdsuiteError, typer.TyperException):
        raise
    except Exception as error:
        from kdsuite.store.files import storage_problem

        if problem := storage_problem(error):
            raise StorageError(
                f"cannot write to {getattr(error, 'filename', None) or results}: {problem}; mend that (free some "
                "space) or give --results on another disk, and the same command goes on where it stopped"
            ) from error
        what = ": ".join([type(error).__name__, *str(error).splitlines()[:1]]).removesuffix(": ")
        where = _write_log(results, traceback.format_exc())
        raise KdsuiteError(f"unexpected {what}; the traceback is in {where}") from error


def _write_log(results: Path, text: str) -> Path:
    """Write to `<results>/error.log`, or to the temporary folder if that is impossible (full, read-only)."""
    from kdsuite.store.files import atomic_write_text
    from kdsuite.store.layout import Layout

    for path in (Layout(results).error_log, Path(tempfile.gettempdir()) / f"kdsuite-error-{os.getpid()}.log"):
        try:
            atomic_write_text(path, without_token(text))
        except OSError:
            continue
        return path
    return Path(os.devnull)


if __name__ == "__main__":
    sys.exit(main())
