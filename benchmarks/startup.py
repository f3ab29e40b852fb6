"""How long do `kdsuite --help` and `kdsuite status` take, on a results folder of 46 runs?

Each call is a fresh process, as in a terminal; the folder is made up by the tests' own writer.

    python benchmarks/startup.py [--quick] [--repeats 5]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Finding, arguments, keep, machine, spread, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from synthetic import Study, write_results  # pyright: ignore[reportMissingImports]

TARGET = 0.5  # seconds
CALL = (sys.executable, "-c", "from kdsuite.cli import main; main()")


def seconds(*words: str) -> float:
    started = time.perf_counter()
    subprocess.run([*CALL, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    options = arguments(__doc__, 5).parse_args()
    repeats = 1 if options.quick else options.repeats
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder), Study(n=20))
        commands = {"kdsuite --help": ("--help",), "kdsuite status": ("status", "--results", folder)}
        seconds("--help")  # so that the machine holds the files in memory
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, words in commands.items():
                taken[name].append(seconds(*words))
    print(f"{machine()}; medians of {repeats} calls (smallest–largest)\n")
    print(table(("command", "seconds"), [(name, spread(times, 1)) for name, times in taken.items()]))
    keep(
        [
            Finding.of_values(name, "a fresh process", "time to answer", "s", times, at_most=TARGET)
            for name, times in taken.items()
        ],
        options.findings,
    )


if __name__ == "__main__":
    main()
