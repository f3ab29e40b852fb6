"""Settings are strict: what is not understood is one clear line, and later sources override earlier ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from kdsuite.config import CONFIGS, load
from kdsuite.errors import SettingsError


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
        ({"sedes": [1]}, "'sedes'; did you mean 'seeds'?"),
        ({"kd1": {"temperature": [2]}}, "'kd1.temperature'; did you mean 'kd1.temperatures'?"),
        ({"tasks": {"sst2": {"trainsize": 5}}}, "did you mean 'tasks.sst2.train_size'?"),
        ({"tasks": {"sst3": {}}}, "did you mean 'tasks.sst2'?"),
        ({"kd1": {"alphas": [1.5]}}, "kd1.alphas.0"),
        ({"kd1": {"alphas": [0.5, 0.5]}}, "repeats 0.5"),
        ({"seeds": []}, "seeds"),
        ({"methods": ["B0", "KD9"]}, "methods.1"),
        ({"tasks": {"sst2": {"training": {"batch_size": 10, "micro_batch_size": 3}}}}, "not a multiple"),
    ],
)
def test_a_mistake_is_one_line_with_the_place_and_the_nearest_key(
    tmp_path, settings_tree, change, hint
) -> None:
    assert hint in problem(write(tmp_path, settings_tree | change))


def test_a_missing_file_broken_yaml_and_missing_keys_are_named(tmp_path, settings_tree) -> None:
    assert "no configuration at" in problem(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("seeds: [1\nmethods: x")
    assert "line 2" in problem(broken)
    assert "'models' is missing" in problem(write(tmp_path, {"tasks": settings_tree["tasks"]}))


def test_sets_override_the_file_and_are_checked_too(tmp_path, settings_tree) -> None:
    path = write(tmp_path, settings_tree)
    sets = ("seeds=[7]", "tasks.sst2.train_size=9", "models.teacher.name=./t")
    settings = load(path, sets=sets, env_file=None)
    assert (settings.seeds, settings.tasks["sst2"].train_size, settings.models.teacher.name) == (
        (7,),
        9,
        "./t",
    )
    assert "write key=value" in problem(path, sets=("seeds",))
    assert "did you mean" in problem(path, sets=("seed=1",))


def test_every_variable_of_the_env_file_is_read(tmp_path, settings_tree) -> None:
    env = tmp_path / ".env"
    env.write_text(
        "TEACHER_PRIMARY=a/t\nTEACHER_FALLBACK=a/f\nSTUDENT_S1=a/s1\nSTUDENT_S2=a/s2\nDEVICE=cpu\nFAST_MODE=0\n"
    )
    modes = {"modes": {"fast": {"seeds": [1]}, "full": {"seeds": [1, 2]}}}
    settings = load(write(tmp_path, settings_tree | modes), env_file=env)
    students = settings.models.students
    assert (settings.models.teacher.name, settings.models.teacher.fallback) == ("a/t", "a/f")
    assert (students.S1.name, students.S2 and students.S2.name) == ("a/s1", "a/s2")
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
