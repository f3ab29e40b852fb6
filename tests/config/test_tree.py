"""Settings are strict: what is not understood is one clear line, and later sources override earlier ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from kdsuite.config import CONFIGS, load
from kdsuite.errors import SettingsError

MODELS = {"teacher": {"name": "a"}, "students": {"S1": {"name": "b"}}}


def write(folder: Path, tree: dict) -> Path:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def problem(path: Path, **options) -> str:
    with pytest.raises(SettingsError) as caught:
        load(path, env_file=None, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_packaged_configuration_is_valid(path: Path) -> None:
    load(path, env_file=None)


def test_fast_and_full_are_the_designs() -> None:
    path = CONFIGS / "experiment.yaml"
    fast, full = (load(path, mode, env_file=None) for mode in ("fast", "full"))
    assert (fast.tasks["sst2"].train_size, fast.tasks["squad"].train_size) == (500, 200)
    assert (full.tasks["sst2"].train_size, full.tasks["squad"].train_size) == (None, None)
    assert (fast.seeds, full.seeds) == ((42,), (42, 123, 456))
    assert (fast.kd1.temperatures, fast.kd1.alphas) == ((2, 4), (0.3, 0.5))
    assert (full.kd1.temperatures, full.kd1.alphas) == ((1, 2, 4, 8), (0.1, 0.3, 0.5, 0.7))
    assert {t.training.epochs for s in (fast,) for t in (s.tasks["sst2"], s.tasks["squad"])} == {1}
    assert {t.training.epochs for t in (full.tasks["sst2"], full.tasks["squad"])} == {3}
    assert not full.tasks["sst2"].teacher_training.enabled
    assert fast.models.teacher.fallback == "Qwen/Qwen2.5-3B-Instruct"
    assert load(path, env_file=None) == fast


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"models": "some/model"}, "models: Input should be a valid dictionary"),
        ({"models": MODELS | {"students": 3}}, "models.students: Input should be a valid dictionary"),
        ({"models": MODELS | {"teacher": 3}}, "models.teacher: Input should be a valid dictionary"),
        (
            {"models": MODELS | {"teacher": {"url": "http://here:80a/v1", "model": "m", "tokenizer": "t"}}},
            "models.teacher.url: Port could not be cast to integer value as '80a'",
        ),
        ({"sedes": [1]}, "'sedes'; did you mean 'seeds'?"),
        ({"kd1": {"temperature": [2]}}, "'kd1.temperature'; did you mean 'kd1.temperatures'?"),
        ({"tasks": {"sst2": {"trainsize": 5}}}, "did you mean 'tasks.sst2.train_size'?"),
        ({"tasks": {"sst3": {}}}, "did you mean 'tasks.sst2'?"),
        ({"kd1": {"alphas": [1.5]}}, "kd1.alphas.0"),
        ({"kd1": {"alphas": [0.5, 0.5]}}, "repeats 0.5"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [42, -1]}, "seeds.1: Input should be greater than or equal to 0 (got -1)"),
        ({"seeds": [20261126142530]}, "seeds.0: Input should be less than or equal to 4294967295"),
        ({"tasks": {"sst2": {"sample_seed": -7}}}, "tasks.sst2.sample_seed"),
        ({"models": MODELS | {"offline": {"seed": 2**40}}}, "models.offline.seed"),
        ({"report": {"seed": -1}}, "report.seed"),
        ({"methods": ["B0", "KD9"]}, "unknown method 'KD9'; did you mean"),
        ({"methods": []}, "methods"),
        ({"tasks": {"own": {"kind": "sst"}}}, "'sst' is no kind or preset of a task; did you mean 'sst2'?"),
        ({"tasks": {"own": {"preset": "squad", "trainsize": 5}}}, "did you mean 'tasks.own.train_size'?"),
        ({"tasks": {"own": {"preset": "squad", "kind": "sst2"}}}, "own is of kind 'sst2' and of preset 'squad'"),
        (
            {"tasks": {"own": {"preset": "sst3", "kind": "classification"}}},
            "'sst3', which there is not; did you mean 'sst2'?",
        ),
        ({"tasks": {"own": {"preset": "generation"}}}, "'generation', which there is not; valid are squad, sst2"),
        ({"tasks": {"own": "sst2"}}, "tasks.own: should be a mapping of keys to values (got 'sst2')"),
        ({"tasks": {"../up": {"preset": "squad"}}}, "'../up' cannot be the name of a task"),
        ({"tasks": {"a--b": {"preset": "squad"}}}, "'a--b' cannot be the name of a task"),
        ({"tasks": {"a" * 65: {"preset": "squad"}}}, "cannot be the name of a task"),
        ({"models": MODELS | {"students": {"teacher": {"name": "b"}}}}, "cannot be the name of a student"),
        ({"models": MODELS | {"students": {"a": {"name": "b"}, "A": {"name": "c"}}}}, "cannot tell apart"),
        ({"models": MODELS | {"students": {"a": {"name": "quantized-proxy"}}}}, "one student must be trained"),
        ({"tasks": {"sst2": {"training": {"batch_size": 10, "micro_batch_size": 3}}}}, "not a multiple"),
    ],
)
def test_a_mistake_is_one_line_with_the_place_and_the_nearest_key(tmp_path, settings_tree, change, hint) -> None:
    assert hint in problem(write(tmp_path, settings_tree | change))


def test_a_missing_file_broken_yaml_and_missing_keys_are_named(tmp_path, settings_tree) -> None:
    assert "no configuration at" in problem(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("seeds: [1\nmethods: x")
    assert "line 2" in problem(broken)
    broken.write_text("seeds: [1]\ntasks: {mine: {title: 2026-02-30}}")
    assert "broken.yaml, line 2: not valid YAML ('2026-02-30': day is out of range for month)" in problem(broken)
    broken.write_text("a: \x07")
    assert "not valid YAML (unacceptable character #x0007" in problem(broken)
    assert "'models' is missing" in problem(write(tmp_path, {"tasks": settings_tree["tasks"]}))


def test_sets_override_the_file_and_are_checked_too(tmp_path, settings_tree) -> None:
    path = write(tmp_path, settings_tree)
    sets = ("seeds=[7]", "tasks.sst2.train_size=9", "models.teacher.name=./t")
    settings = load(path, sets=sets, env_file=None)
    assert (settings.seeds, settings.tasks["sst2"].train_size, settings.models.teacher.name) == ((7,), 9, "./t")
    assert "write key=value" in problem(path, sets=("seeds",))
    assert "did you mean" in problem(path, sets=("seed=1",))
    assert problem(path, sets=("seeds=[1",)).startswith("--set 'seeds=[1', line 1: not valid YAML (")


def test_an_env_file_that_is_no_text_is_one_line(tmp_path, settings_tree) -> None:
    (tmp_path / ".env").write_bytes(b"# caf\xe9\nDEVICE=cpu\n")
    with pytest.raises(SettingsError, match=r"cannot read .*\.env: 'utf-8' codec can't decode byte 0xe9") as caught:
        load(write(tmp_path, settings_tree), env_file=tmp_path / ".env")
    assert caught.value.exit_code == 2


def test_every_variable_of_the_env_file_is_read(tmp_path, settings_tree) -> None:
    env = tmp_path / ".env"
    env.write_text(
        "TEACHER_PRIMARY=a/t\nTEACHER_FALLBACK=a/f\nSTUDENT_S1=a/s1\nSTUDENT_S2=a/s2\nDEVICE=cpu\nFAST_MODE=0\n"
    )
    modes = {"modes": {"fast": {"seeds": [1]}, "full": {"seeds": [1, 2]}}}
    settings = load(write(tmp_path, settings_tree | modes), env_file=env)
    students = settings.models.students
    assert (settings.models.teacher.name, settings.models.teacher.fallback) == ("a/t", "a/f")
    assert (students["S1"].name, students["S2"].name) == ("a/s1", "a/s2")
    assert (settings.device, settings.seeds) == ("cpu", (1, 2))
    assert load(write(tmp_path, settings_tree | modes), mode="fast", env_file=env).seeds == (1,)


def test_the_token_goes_to_the_hub_library_and_nowhere_else(tmp_path, settings_tree, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    env = tmp_path / ".env"
    env.write_text("HF_TOKEN=hf_secret\n")
    settings = load(write(tmp_path, settings_tree), env_file=env)
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in settings.model_dump_json() + repr(settings)


def test_modes_are_checked(tmp_path, settings_tree) -> None:
    assert "has no modes" in problem(write(tmp_path, settings_tree), mode="fast")
    path = write(tmp_path, settings_tree | {"modes": {"fast": {}, "full": {}}})
    assert "did you mean 'full'?" in problem(path, mode="ful")
    numbered = write(tmp_path, settings_tree | {"modes": {1: {"seeds": [7]}}})
    assert load(numbered, env_file=None).seeds == load(numbered, mode="1", env_file=None).seeds == (7,)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"fractions": [0.1, 0.5]}, "fractions: 1 is not among them; add it"),
        ({"fractions": []}, "fractions: 1 is not among them; add it"),
        ({"fractions": [0.1, 1, 0.1]}, "fractions: repeats 0.1"),
        ({"fractions": [0, 1]}, "greater than 0"),
        ({"fractions": [5, 1]}, "less than or equal to 1"),
        ({"fractions": [0.1, 1], "unlabeled": "raw.csv"}, "set `transfer: labelled`, or take one of the two keys out"),
    ],
)
def test_fractions_are_distinct_shares_with_the_whole_and_of_labelled_examples(
    tmp_path: Path, settings_tree: dict, task: dict, said: str
) -> None:
    told = problem(write(tmp_path, settings_tree | {"tasks": {"sst2": task}}))
    assert "tasks.sst2" in told and said in told


def test_fractions_go_with_what_is_unlabeled_where_nobody_learns_it(tmp_path: Path, settings_tree: dict) -> None:
    task = {"fractions": [0.1, 1], "unlabeled": "raw.csv", "transfer": "labelled"}
    assert load(write(tmp_path, settings_tree | {"tasks": {"sst2": task}}), env_file=None).tasks["sst2"].fractions


@pytest.mark.parametrize("modes", ["fast", ["fast"], {"fast": 3}])
def test_modes_of_a_wrong_kind_are_one_line(tmp_path, settings_tree, modes) -> None:
    assert "modes: names, and under each a mapping" in problem(write(tmp_path, settings_tree | {"modes": modes}))


TWICE = {
    "tasks: {sst2: {}}\nseeds: [1]\ntasks: {squad: {}}": ("tasks", 1, 3),
    "seeds: [1]\nmodels:\n  teacher:\n    name: a\n    batch_size: 1\n    name: b": ("name", 4, 6),
    "tasks: {sst2: {train_size: 1,\n  dev_size: 2, train_size: 3}}": ("train_size", 1, 2),
    "x: &x {epochs: 1}\ny:\n  <<: *x\n  epochs: 2\n  batch_size: 1\n  epochs: 3": ("epochs", 4, 6),
    "x: &x {epochs: 1}\ny:\n  <<: *x\n  <<: *x": ("<<", 3, 4),
    "modes:\n  fast:\n  - a: 1\n    'a': 2": ("a", 3, 4),
    "seeds: [1]\n? seeds\n: [2]": ("seeds", 1, 2),
}


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_is_given_twice_is_refused_with_both_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    key, first, second = TWICE[text]
    assert problem(path) == (
        f"{path}, line {second}: not valid YAML (the key {key!r} is given twice, in lines {first} and {second}; keep "
        "one of them)"
    )


def test_a_key_that_is_given_twice_in_a_value_of_the_command_line_is_refused() -> None:
    line = problem(CONFIGS / "offline.yaml", sets=["kd1={alphas: [0.1], top_k: 3, alphas: [0.2]}"])
    assert "--set 'kd1={" in line and "the key 'alphas' is given twice" in line


def test_what_a_merge_brings_in_may_be_overridden(tmp_path: Path, settings_tree: dict) -> None:
    """Also where the merged mapping is itself made by a merge."""
    path = tmp_path / "merged.yaml"
    path.write_text(
        "tasks:\n"
        "  sst2: &sst2 {train_size: 5, dev_size: 6, training: &training {epochs: 2, batch_size: 4}}\n"
        "  squad: {<<: *sst2, dev_size: 7, training: {<<: *training, epochs: 3}}\n"
        + yaml.safe_dump({"models": settings_tree["models"]})
    )
    squad = load(path, env_file=None).tasks["squad"]
    assert (squad.train_size, squad.dev_size) == (5, 7)
    assert (squad.training.epochs, squad.training.batch_size) == (3, 4)


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, settings_tree: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    settings_tree["tasks"]["sst2"] = {"source": "~/sst2", "unlabeled": "~/my.tsv", "splits": {"train": "a~b.tsv"}}
    settings_tree["models"]["teacher"] |= {"name": "~/big", "fallback": "~nobody-of-that-name/small"}
    settings = load(write(tmp_path, settings_tree), sets=["models.students.S1.name=~/s"], env_file=None)
    task, teacher = settings.tasks["sst2"], settings.models.teacher
    assert (task.source, task.unlabeled, task.splits.train) == ("/home/ada/sst2", "/home/ada/my.tsv", "a~b.tsv")
    assert (teacher.name, teacher.fallback) == ("/home/ada/big", "~nobody-of-that-name/small")
    assert settings.models.students["S1"].name == "/home/ada/s"


def test_names_with_dots_are_reached_from_the_command_line(tmp_path: Path, settings_tree: dict) -> None:
    students = {"qwen2.5": {"name": "a"}, "qwen2.5.1": {"name": "b"}}
    path = write(tmp_path, settings_tree | {"models": MODELS | {"students": students}})
    settings = load(path, sets=["models.students.qwen2.5.name=c", "models.students.qwen2.5.1=null"], env_file=None)
    assert {name: model.name for name, model in settings.models.students.items()} == {"qwen2.5": "c"}


def test_the_env_files_students_are_those_called_s1_and_s2(tmp_path: Path, settings_tree: dict) -> None:
    env = tmp_path / ".env"
    env.write_text("STUDENT_S1=a/s1\nSTUDENT_S2=a/s2\n")
    own = settings_tree | {"models": MODELS | {"students": {"small": {"name": "b"}}}}
    assert load(write(tmp_path, own), env_file=env).students == ("small",)
    assert load(write(tmp_path, settings_tree), env_file=env).students == ("S1", "S2")
