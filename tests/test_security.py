"""Only safetensors, no code from elsewhere, no secrets in what is written, nothing outside the results folder."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import kdsuite
from kdsuite import cli
from kdsuite.errors import VARIABLES, without_token

PACKAGE = Path(kdsuite.__file__).parent
TINY = Path(__file__).parent / "tiny.yaml"
TOKEN = "hf_plantedPlantedPlantedPlantedPlanted"
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "importlib.util", "runpy"}
TO_OUR_OWN = {("runtime/ranks.py", "pickle")}  # what multiprocessing's pipes do, between processes of one command
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "np.load", "os.system", "os.popen"}
READERS = {"AutoModelForCausalLM.from_pretrained", "PeftModel.from_pretrained"}  # of weights, from a folder


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    return {*names, *(node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield name, ast.unparse(node.func), node


def test_no_module_can_read_pickles_or_run_what_it_reads() -> None:
    assert {(name, module) for name, tree in sources() for module in imported(tree) & UNSAFE_MODULES} == TO_OUR_OWN
    made = {(name, call) for name, call, _ in calls()}
    assert {(name, call) for name, call in made if call in UNSAFE_CALLS} == set()
    assert ("config/files.py", "strict_yaml.load") in made  # the check does see calls


def test_weights_are_read_from_safetensors_only_and_no_model_brings_its_code() -> None:
    seen = set()
    for name, call, node in calls():
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        assert options.get("trust_remote_code", "False") == "False", (name, ast.unparse(node))
        if call in READERS:
            seen.add(call)
            assert options.get("use_safetensors") == "True", (name, ast.unparse(node))
    assert seen == READERS


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """What a whole suite writes and says to somebody who has a token, failures that name it included."""
    folder = tmp_path_factory.mktemp("planted")
    said = io.StringIO()
    suite = ["--config", str(TINY), "--task", "sst2", "--set", "models.students.S2=null"]
    unknown = ["--set", f"models.students.S1.name=nobody/{TOKEN}"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        for name in VARIABLES:
            patch.setenv(name, TOKEN)
        patch.chdir(folder)
        (folder / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
        assert cli.main(["run", *suite]) == 0
        assert cli.main(["export", "B0_sst2_S1_seed42", "exported"]) == 0
        assert cli.main(["doctor", *suite]) == 0
        assert cli.main(["train", *suite, *unknown]) == 2
        fail = _raising(f"401 for https://user:{TOKEN}@a.host/b")
        patch.setattr("kdsuite.jobs.training.train", fail)
        assert cli.main(["train", *suite, "--set", "seeds=[7]"]) == 1
        patch.setattr("kdsuite.pipeline.expand", fail)
        assert cli.main(["train", *suite]) == 1
    return folder, said.getvalue()


def _raising(text: str) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    return fail


@pytest.mark.slow
def test_the_hub_token_is_in_nothing_that_is_written_or_said(planted: tuple[Path, str]) -> None:
    folder, said = planted
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".env"]
    assert {"report.html", "error.log", "run.json", "log.txt", "README.md"} <= {path.name for path in files}
    assert [str(path) for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in said and "<HF_TOKEN>" in said


def test_a_text_without_the_token_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_token("a text") == "a text"
    monkeypatch.setenv("HF_TOKEN", "")
    assert without_token("a text") == "a text"


def test_a_token_is_found_as_it_is_sent_without_the_blanks_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a secret that was read from a file has the end of its line."""
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\r\n")
    assert without_token(f"401 for {TOKEN}") == "401 for <HF_TOKEN>"
