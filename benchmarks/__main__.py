"""Every benchmark program in turn, then one summary: `make bench`.

Each program is a process of its own, prints its tables as it goes, and must end well. The summary is written as
CSV and Markdown, with the machine and the versions it was taken with.

    python benchmarks [--quick] [--only growth] [--output results-bench]
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from measure import Finding, machine, table

HERE = Path(__file__).parent
PROGRAMS = """kd_loss cross_tokenizer trainers costs limit adapters answers served cache_io growth report
    startup""".split()
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl", "liger-kernel")


def findings_of(name: str, options: Sequence[str]) -> list[Finding]:
    """Run a program, letting it print; what it found. SystemExit if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "findings.jsonl"
        command = [sys.executable, str(HERE / f"{name}.py"), *options, "--findings", str(kept)]
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            raise SystemExit(f"{name} failed with exit code {code}")
        return [Finding(**json.loads(line)) for line in kept.read_text(encoding="utf-8").splitlines()]


def versions() -> str:
    """What the figures were taken with."""
    parts = []
    for library in LIBRARIES:
        try:
            parts.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            parts.append(f"{library} not installed")
    return ", ".join([f"Python {platform.python_version()}", *parts])


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def row(finding: Finding) -> list[str]:
    unit = finding.unit if finding.unit in "×%" else f" {finding.unit}"
    goal = ""
    for sign, bound in (("≥", finding.at_least), ("≤", finding.at_most)):
        if bound is not None:
            goal = f"{sign} {number(bound)}{unit}"
    spread = f"{number(finding.low)}–{number(finding.high)}"
    met = {True: "met", False: "not met", None: ""}[finding.met]
    return [finding.question, finding.against, finding.figure, f"{number(finding.median)}{unit}", spread, goal, met]


def write(findings: Sequence[Finding], output: Path, about: str) -> str:
    """The summary as summary.csv and summary.md in a folder; the latter's text."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(findings[0]), "met"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(f) | {"met": f.met} for f in findings)
    header = ("what", "against", "figure", "median", "smallest–largest", "target", "")
    text = f"{about}\n\n{table(header, [row(f) for f in findings])}\n"
    (output / "summary.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, once, to see that it runs")
    parser.add_argument("--only", choices=PROGRAMS, action="append", help="only this program; repeatable")
    parser.add_argument("--output", type=Path, default=Path("results-bench"), help="folder of the summary")
    options = parser.parse_args()
    started, findings = time.monotonic(), []
    for name in options.only or PROGRAMS:
        print(f"\n## {name}\n", flush=True)
        findings += findings_of(name, ["--quick"] if options.quick else [])
    about = f"{machine()}; {versions()}; {time.monotonic() - started:,.0f} s in all"
    print(f"\n## Summary\n\n{write(findings, options.output, about)}")


if __name__ == "__main__":
    main()
