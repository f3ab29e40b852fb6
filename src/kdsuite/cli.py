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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdsuite import __version__
from kdsuite.errors import KdsuiteError
from kdsuite.runtime.secrets import without_token

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
Results = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Where everything is written and found.")
]
RESULTS = Path("results")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; this is the console script."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(arguments or ["--help"], prog_name="kdsuite", standalone_mode=False) or 0
    except KdsuiteError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:  # usage: typer names the nearest valid command or option
        return _complain(error.format_message(), error.exit_code)


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
    config: Config = None, mode: Mode = None, task: Tasks = None, set: Sets = None, results: Results = RESULTS
) -> int:
    """Measure latency, throughput, memory and size of the models."""
    return _run(("benchmark",), config, mode, task, None, set, results)


@app.command()
def report(
    config: Config = None, mode: Mode = None, task: Tasks = None, set: Sets = None, results: Results = RESULTS
) -> int:
    """Write tables, figures and report.html from the runs there are."""
    return _run(("report",), config, mode, task, None, set, results)


@app.command()
def plan(
    config: Config = None, mode: Mode = None, task: Tasks = None, method: Methods = None, set: Sets = None
) -> int:
    """List the runs that a configuration asks for."""
    from kdsuite.plan import expand

    specs = expand(_load(config, mode, set), task, method)
    for spec in specs:
        print(spec.run_id)
    kinds = Counter(f"{spec.task} {spec.method}" for spec in specs)
    print(f"\n{len(specs)} runs: {', '.join(f'{count} × {kind}' for kind, count in kinds.items())}")
    return 0


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
) -> int:
    from kdsuite.plan import expand
    from kdsuite.runtime.progress import Progress
    from kdsuite.runtime.quiet import silence
    from kdsuite.runtime.signals import sigterm_as_ctrl_c

    settings = _load(config, mode, sets)
    expand(settings, tasks, methods)  # a misspelt task or method is told before torch is loaded
    if results.exists() and not results.is_dir():
        raise typer.BadParameter(f"{results} is a file, not a folder", param_hint="--results")
    silence()
    try:
        with _traceback_to_file(results), sigterm_as_ctrl_c():
            from kdsuite import pipeline

            outcome = pipeline.run(
                settings, results, stages, tasks=tasks, methods=methods, progress=Progress()
            )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
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
        first_line = next(iter(str(error).splitlines()), "")
        what = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
        where = _write_log(results, traceback.format_exc())
        raise KdsuiteError(f"unexpected {without_token(what)}; the traceback is in {where}") from error


def _write_log(results: Path, text: str) -> Path:
    """Write to `<results>/error.log`, or to the temporary folder if that is impossible (full, read-only)."""
    from kdsuite.runtime.files import atomic_write_text

    for path in (results / "error.log", Path(tempfile.gettempdir()) / f"kdsuite-error-{os.getpid()}.log"):
        try:
            atomic_write_text(path, without_token(text))
        except OSError:
            continue
        return path
    return Path(os.devnull)


if __name__ == "__main__":
    sys.exit(main())
