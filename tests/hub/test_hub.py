"""The way to the hub and what happens on it: access, errors, fallback, interruptions, no network at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .standin import COMMIT, STRANGER, TOKEN

pytestmark = pytest.mark.slow


def record(met: dict[str, Any], results: str, run_id: str) -> dict[str, Any]:
    return json.loads((met["folder"] / results / "raw_runs" / run_id / "run.json").read_text())


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("gated without a token", "'gated/teacher' cannot be loaded: it is gated, and there is no HF_TOKEN; ask for"),
        ("gated for this token", "'gated/teacher' cannot be loaded: it is gated, and this HF_TOKEN has no access"),
        ("wrong model id", "'open/absent' cannot be loaded: the hub has nothing of that name, or it is private; check"),
        ("wrong data set id", "'open/absent' is no folder here and cannot be had from the hub: the hub has nothing of"),
        ("gated data set", "'gated/glue' is no folder here and cannot be had from the hub: it is gated, and there is"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_one_line_with_reason_and_remedy_and_exit_2(met, case: str, line: str) -> None:
    result = met[case]
    errors = [text for text in result["err"].splitlines() if text.startswith("error: ")]
    assert result["code"] == 2
    assert len(errors) == 1 and line in errors[0]
    assert result["left"] == []


def test_a_wrong_revision_is_told_as_such(met) -> None:
    result = met["wrong revision"]
    assert result["code"] == 2
    assert "'open/student' cannot be loaded: the hub has no such revision of it; correct or remove" in result["err"]


def test_a_download_that_breaks_off_again_and_again_ends_it_and_says_how_to_go_on(met) -> None:
    result = met["broken connection"]
    assert result["code"] == 2
    assert "the connection to the hub broke off; check the network; the same command goes on" in result["err"]


def test_a_download_that_breaks_off_once_is_resumed(met) -> None:
    assert met["shaky connection"]["code"] == 0
    seen = met["requests"]["seen"]
    assert len([r for r in seen if r.startswith("GET shaky") and r.endswith("model.safetensors")]) == 2


def test_a_teacher_without_access_is_replaced_by_the_fallback_and_every_record_says_so(met) -> None:
    for stage in ("fallback, cache", "fallback, train"):
        assert met[stage]["code"] == 0, met[stage]["err"]
        assert "going on with the fallback teacher open/teacher" in met[stage]["err"]
    teacher = record(met, "results", "KD1_sst2_S1_T2_a0.5_seed42")["teacher"]
    assert (teacher["name"], teacher["revision"]) == ("open/teacher", COMMIT)
    assert "'gated/teacher' cannot be loaded: it is gated" in teacher["stands_in"]
    model = record(met, "results", "teacher_squad")["model"]
    assert (model["name"], model["stands_in"]) == ("open/teacher", teacher["stands_in"])
    student = record(met, "results", "B0_squad_S1_seed42")
    assert (student["teacher"], student["model"]["stands_in"]) == (None, None)


def test_with_access_the_teacher_itself_is_taken_by_the_token_of_env(met) -> None:
    assert met["with access"]["code"] == 0, met["with access"]["err"]
    model = record(met, "results-access", "teacher_sst2")["model"]
    assert (model["name"], model["revision"], model["stands_in"]) == ("gated/teacher", COMMIT, None)


def test_without_network_the_cache_is_enough_and_nothing_waits_for_it(met) -> None:
    result = met["cached, no network"]
    assert result["code"] == 0, result["err"]
    assert "the hub is not reached: only what its cache holds can be used" in result["err"]
    assert record(met, "results-offline", "teacher_sst2")["model"]["revision"] == COMMIT


def test_without_network_what_is_not_in_the_cache_is_one_clear_line(met) -> None:
    result = met["not cached, no network"]
    assert result["code"] == 2
    assert "'open/never-seen' cannot be loaded: it is not in the hub's cache, and the hub cannot be" in result["err"]


def test_the_hub_is_asked_nothing_for_what_is_on_this_machine_or_known_to_be_out_of_reach(met) -> None:
    """Twenty seconds of retries per file would be the library's way."""
    assert met["cached, no network"]["err"].count("the hub is not reached") == 1


def test_the_token_is_nowhere(met) -> None:
    said = json.dumps({name: result for name, result in met.items() if name != "folder"})
    written = [p.read_bytes() for p in Path(met["folder"]).glob("results*/**/*") if p.is_file()]
    for token in (TOKEN, STRANGER, "hf_planted_wrong"):
        assert token not in said
        assert not any(token.encode() in content for content in written)


def findings(met: dict[str, Any], case: str) -> dict[str, str]:
    """State and line by what was looked at."""
    lines = met[case]["out"].splitlines()
    return {line[9:].split(":")[0]: line for line in lines[:-1]}


def test_doctor_names_a_gated_model_and_what_to_do(met) -> None:
    found = findings(met, "doctor without a token")
    assert met["doctor without a token"]["code"] == 1
    assert found["teacher gated/teacher"].startswith("problem")
    assert "there is no HF_TOKEN; ask for access on its hub page" in found["teacher gated/teacher"]
    assert found["token"].startswith("ok") and "absent (no .env is read" not in found["token"]
    assert "reachable, " in found["S1 open/student"] or "in the hub's cache" in found["S1 open/student"]


def test_doctor_with_access_is_content_and_says_what_is_to_be_downloaded(met) -> None:
    found = findings(met, "doctor with a token")
    assert met["doctor with a token"]["code"] == 0, met["doctor with a token"]["out"]
    assert "present (.env is read) and valid" in found["token"]
    assert "to download" in found["teacher gated/teacher"]
    assert found["data of sst2, open/glue"].startswith("ok")
    assert met["doctor with a token"]["out"].endswith("ready\n")


def test_doctor_tells_a_wrong_token_from_one_without_access(met) -> None:
    assert "the hub does not know it" in findings(met, "doctor with a wrong token")["token"]
    stranger = findings(met, "doctor with another's token")
    assert stranger["token"].endswith("and valid")
    assert "this HF_TOKEN has no access to it" in stranger["teacher gated/teacher"]


def test_doctor_names_a_model_that_is_not_there(met) -> None:
    line = findings(met, "doctor of what is not there")["S1 open/absent"]
    assert line.startswith("problem") and "the hub has nothing of that name" in line


def test_doctor_without_network_says_what_it_could_not_check(met) -> None:
    found = findings(met, "doctor, no network")
    assert met["doctor, no network"]["code"] == 1
    assert found["hub"].startswith("unknown") and "are not checked" in found["hub"]
    assert found["token"].startswith("unknown")
    assert "not in the hub's cache" in found["S1 open/never-seen"]
    assert "in the hub's cache" in found["teacher gated/teacher"]


def test_doctor_is_content_without_network_where_everything_is_in_the_cache(met) -> None:
    result = met["doctor, no network, all cached"]
    assert result["code"] == 0, result["out"]


def test_an_export_is_pushed_file_by_file_to_a_repository_that_is_private_at_first(met) -> None:
    assert met["push"]["code"] == 0, met["push"]["err"]
    assert met["push"]["out"].splitlines()[1].startswith("pushed to http://127.0.0.1")
    out, there = met["folder"] / "out", met["folder"] / "hub" / "models" / "open" / "pushed"
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert "adapter_model.safetensors" in names and "README.md" in names
    assert all((there / name).read_bytes() == (out / name).read_bytes() for name in names)
    assert met["created"]["seen"]["open/pushed"]["visibility"] == "private"


def test_a_card_alone_is_pushed_without_weights(met) -> None:
    assert met["push of a card"]["code"] == 0, met["push of a card"]["err"]
    there = met["folder"] / "hub" / "models" / "open" / "card"
    assert "base_model: open/student" in (there / "README.md").read_text()
    assert not list(there.glob("*.safetensors"))


def test_a_push_without_the_right_to_is_one_line_and_the_export_stays(met) -> None:
    result = met["push by a stranger"]
    assert result["code"] == 1
    (error,) = [text for text in result["err"].splitlines() if text.startswith("error: ")]
    assert "not-mine is written, but not pushed to open/other: this token may not write there; take one with" in error
    assert (met["folder"] / "not-mine" / "README.md").exists()


def test_no_token_is_in_what_a_push_says_or_writes(met) -> None:
    said = "".join(met[name][to] for name in met if name.startswith("push") for to in ("out", "err"))
    pushed = [met["folder"] / name for name in ("out", "card", "not-mine", "hub/models/open", "results")]
    files = [path for folder in pushed for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for token in (TOKEN, STRANGER):
        assert token not in said and not any(token.encode() in path.read_bytes() for path in files)
