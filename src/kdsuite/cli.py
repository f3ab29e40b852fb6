"""The commands: parse, call the pipeline, print. No logic of its own.

Whatever is expected to go wrong ends as one line on stderr and an exit code (0 done, 1 something failed,
2 usage or configuration, 130 Ctrl-C); the traceback of anything else goes to a file that the line names.
Results go to stdout, progress to stderr. The pipeline is imported inside the commands: it brings torch
along, and `--help` should not wait for that.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdsuite import __version__
from kdsuite.errors import KdsuiteError, StorageError, without_token
from kdsuite.runtime.process import check_supported, never_fail, sigterm_as_ctrl_c

if TYPE_CHECKING:
    from kdsuite.config import Settings
    from kdsuite.pipeline import Outcome

STAGES = ("prepare", "cache", "train", "benchmark", "report")
INTERRUPTED = 130

app = typer.Typer(
    help="Knowledge distillation of causal language models, from raw data to tables, figures and a report.",
    epilog="Exit codes: 0 all done, 1 something failed, 2 usage or configuration error, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration (YAML); default: the offline one."),
]
Mode = Annotated[
    str | None,
    typer.Option("--mode", metavar="fast|full", help="One of the configuration's modes, if it has any."),
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", metavar="TASK", help="Only this task (sst2, squad); repeatable.")
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="METHOD", help="Only this method (B0, KD1, KD2, KD3); repeatable."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, e.g. tasks.sst2.train_size=100; repeatable."
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="MODEL",
        help="Measure this model instead, a save_pretrained or adapter folder or a hub id, and keep it in tables "
        "and figures beside the plan's; repeatable.",
    ),
]
Results = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Where everything is written and found.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
RESULTS = Path("results")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; this is the console script."""
    arguments = sys.argv[1:] if arguments is None else arguments
    never_fail(sys.stdout, sys.stderr)
    try:
        with sigterm_as_ctrl_c():
            code = app(arguments or ["--help"], prog_name="kdsuite", standalone_mode=False) or 0
    except KeyboardInterrupt:  # outside of a command; inside of one, typer makes it the exit code
        code = INTERRUPTED
    except KdsuiteError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:  # usage: typer names the nearest valid command or option
        return _complain(error.format_message(), error.exit_code)
    if code == INTERRUPTED:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
    return code


def _complain(message: str, exit_code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        print(f"kdsuite {__version__}")
        return
    check_supported()


@app.command()
def run(
    config: Config = None,
    mode: Mode = None,
    task: Tasks = None,
    method: Methods = None,
    set: Sets = None,
    results: Results = RESULTS,
) -> int:
    """All stages, from the data to the report; what is there already is not done again."""
    return _run(STAGES, config, mode, task, method, set, results)


@app.command()
def prepare(
    config: Config = None, mode: Mode = None, task: Tasks = None, set: Sets = None, results: Results = RESULTS
) -> int:
    """Load or generate the examples and split them."""
    return _run(("prepare",), config, mode, task, None, set, results)


@app.command()
def cache(
    config: Config = None,
    mode: Mode = None,
    task: Tasks = None,
    method: Methods = None,
    set: Sets = None,
    results: Results = RESULTS,
    inspect: Annotated[
        bool,
        typer.Option("--inspect", help="Only say what is cached: models, data, quality, coverage, size."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only that, and hash every cached file again.")
    ] = False,
) -> int:
    """Ask the teacher and keep its outputs, as far as the methods need them."""
    if inspect or verify:
        return _inspect(results, verify)
    return _run(("cache",), config, mode, task, method, set, results)


@app.command()
def train(
    config: Config = None,
    mode: Mode = None,
    task: Tasks = None,
    method: Methods = None,
    set: Sets = None,
    results: Results = RESULTS,
) -> int:
    """Train and evaluate the planned runs that are not completed."""
    return _run(("train",), config, mode, task, method, set, results)


@app.command()
def benchmark(
    config: Config = None,
    mode: Mode = None,
    task: Tasks = None,
    models: Models = None,
    set: Sets = None,
    results: Results = RESULTS,
) -> int:
    """Measure latency, throughput, memory and size of the models."""
    return _run(("benchmark",), config, mode, task, None, set, results, models)


@app.command()
def report(
    config: Config = None,
    mode: Mode = None,
    task: Tasks = None,
    set: Sets = None,
    results: Results = RESULTS,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Print two results folders side by side instead."),
    ] = None,
) -> int:
    """Write tables, figures and report.html from the runs there are."""
    if compare is None:
        return _run(("report",), config, mode, task, None, set, results)
    from kdsuite.report.build import compare as side_by_side

    print("\n".join(side_by_side(*compare, _load(config, mode, set).report).lines))
    return 0


@app.command()
def export(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN_ID", help="A completed run, as `kdsuite plan` lists it.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base model.")] = False,
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option("--quantize", help="Quantize the weights; merges an adapter, too."),
    ] = None,
    results: Results = RESULTS,
) -> int:
    """Write a run's model as a standalone folder that plain transformers loads, with a model card."""
    from kdsuite.runtime.process import silence

    silence()
    with _traceback_to_file(results):
        from kdsuite.extras.export import export_run
        from kdsuite.runtime import device

        export_run(results, run_id, folder, device.choose().device, merge, quantize)
    print(f"exported {run_id} to {folder}")
    return 0


@app.command()
def plan(
    config: Config = None,
    mode: Mode = None,
    task: Tasks = None,
    method: Methods = None,
    set: Sets = None,
    json: Json = False,
) -> int:
    """What would run, how long, with how much disk and memory; what to change if it does not fit."""
    from kdsuite.plan import expand

    settings = _load(config, mode, set)
    specs = expand(settings, task, method)
    from kdsuite.forecast.build import forecast, this_machine
    from kdsuite.forecast.text import as_json, describe
    from kdsuite.runtime.device import choose

    choice = choose(settings.device, settings.dtype, settings.threads)
    machine = this_machine(choice)
    expected = forecast(settings, specs, machine)
    print(as_json(expected, machine) if json else "\n".join([str(choice), *describe(expected, machine)]))
    return 0


@app.command()
def doctor(
    config: Config = None,
    mode: Mode = None,
    task: Tasks = None,
    method: Methods = None,
    set: Sets = None,
    results: Results = RESULTS,
) -> int:
    """Check device, memory, disk, token and access to every model and data set; say what to do."""
    from kdsuite.plan import expand
    from kdsuite.runtime.process import silence

    settings = _load(config, mode, set)
    specs = expand(settings, task, method)
    silence()
    from kdsuite.forecast.doctor import examine
    from kdsuite.runtime.device import choose

    problems = 0
    for finding in examine(
        settings, specs, choose(settings.device, settings.dtype, settings.threads), results
    ):
        problems += finding.state == "problem"
        print(finding, flush=True)
    print(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "ready")
    return 1 if problems else 0


@app.command()
def status(results: Results = RESULTS) -> int:
    """Runs by state, progress and time left."""
    from kdsuite.status import describe

    print("\n".join(describe(results)))
    return 0


def _inspect(results: Path, verify: bool) -> int:
    from kdsuite.teacher.inspection import inspect

    found = inspect(results, verify)
    print("\n".join(found.lines))
    for problem in found.damaged:
        print(f"damaged: {problem}; `kdsuite cache` makes it anew", file=sys.stderr)
    return 1 if found.damaged else 0


def _load(config: Path | None, mode: str | None, sets: list[str] | None) -> Settings:
    from kdsuite import config as configuration

    return configuration.load(config, mode=mode, sets=sets or (), env_file=Path(".env"))


def _run(
    stages: tuple[str, ...],
    config: Path | None,
    mode: str | None,
    tasks: list[str] | None,
    methods: list[str] | None,
    sets: list[str] | None,
    results: Path,
    models: list[str] | None = None,
) -> int:
    from kdsuite.plan import expand
    from kdsuite.runtime.process import silence
    from kdsuite.runtime.progress import Progress

    settings = _load(config, mode, sets)
    expand(settings, tasks, methods)  # a misspelt task or method is told before torch is loaded
    if results.exists() and not results.is_dir():
        raise typer.BadParameter(f"{results} is a file, not a folder", param_hint="--results")
    silence()
    with _traceback_to_file(results):
        from kdsuite import pipeline

        outcome = pipeline.run(
            settings,
            results,
            stages,
            tasks=tasks,
            methods=methods,
            models=models or (),
            progress=Progress(),
        )
    return _summarize(outcome, results)


def _summarize(outcome: Outcome, results: Path) -> int:
    """The closing lines: what was done, the best, where it is, what failed."""
    print(f"{outcome.completed} completed, {outcome.skipped} done before, {len(outcome.failed)} failed")
    for line in outcome.summary_lines:
        print(line)
    print(f"results: {results}")
    for run_id, reason in outcome.failed:
        print(f"failed: {run_id}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


@contextmanager
def _traceback_to_file(results: Path) -> Iterator[None]:
    """Turn what nobody expected into one line that names the file with the traceback."""
    try:
        yield
    except KdsuiteError:
        raise
    except Exception as error:
        from kdsuite.store.files import storage_problem

        if problem := storage_problem(error):
            raise StorageError(
                f"cannot write to {getattr(error, 'filename', None) or results}: {problem}; mend that (free some "
                "space) or give --results on another disk, and the same command goes on where it stopped"
            ) from error
        first_line = next(iter(str(error).splitlines()), "")
        what = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        where = _write_log(results, traceback.format_exc())
        raise KdsuiteError(f"unexpected {what}; the traceback is in {where}") from error


def _write_log(results: Path, text: str) -> Path:
    """Write to `<results>/error.log`, or to the temporary folder if that is impossible (full, read-only)."""
    from kdsuite.store.files import atomic_write_text

    for path in (results / "error.log", Path(tempfile.gettempdir()) / f"kdsuite-error-{os.getpid()}.log"):
        try:
            atomic_write_text(path, without_token(text))
        except OSError:
            continue
        return path
    return Path(os.devnull)


if __name__ == "__main__":
    sys.exit(main())
