"""What a terminal cannot show ends no command, and its meaning stays."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdsuite.runtime.process import never_fail


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "B − A: −1.5 × 2 … α = 0.3", "B - A: -1.5 x 2 ... alpha = 0.3"),
        ("ascii", "Zoë 模型", "Zo\\xeb \\u6a21\\u578b"),
        ("latin-1", "Zoë × 2 → −3", "Zoë × 2 -> -3"),
        ("cp1252", "2–3 ≥ 1", "2–3 >= 1"),
        ("utf-8", "−1.5 模型", "−1.5 模型"),
        ("utf-8", "a\udcffb", "a\\udcffb"),  # a file name that is no UTF-8
    ],
)
def test_characters_that_an_encoding_lacks_are_told_otherwise(encoding: str, text: str, shown: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    never_fail(stream, None, io.StringIO())
    print(text, end="", file=stream, flush=True)
    assert stream.buffer.getvalue().decode(encoding) == shown  # pyright: ignore[reportAttributeAccessIssue]


IN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # files' names, too


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "environment"),
    [*((command, IN_C) for command in ("plan", "doctor", "status")), ("status", {"PYTHONIOENCODING": "ascii"})],
)
def test_commands_speak_to_terminals_without_utf8(tmp_path: Path, command: str, environment: dict[str, str]) -> None:
    (tmp_path / "Größe").mkdir()
    where = ["--results", "Größe"] if command != "plan" else []
    done = subprocess.run(
        [sys.executable, "-m", "kdsuite.cli", command, *where],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (int(command == "status"), False)
    assert (done.stdout + done.stderr).isascii()
