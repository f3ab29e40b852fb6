"""A configuration expands to the documented runs, and a fingerprint changes exactly with what matters."""

from __future__ import annotations

import pytest

from kdsuite.config import CONFIGS, Settings, load
from kdsuite.errors import SettingsError
from kdsuite.plan import RunSpec, expand, run_fingerprint

SOURCES = {"data": "d", "teacher": "t", "S1": "s"}


def ids(settings: Settings, **narrow) -> list[str]:
    return [spec.run_id for spec in expand(settings, **narrow)]


def changed(tree: dict, **sections) -> Settings:
    return Settings.model_validate(tree | sections)


def test_run_ids_are_the_documented_ones(settings) -> None:
    planned = ids(settings)
    assert len(planned) == len(set(planned)) == 2 * (2 + 3 * 7)
    assert {"KD1_sst2_S1_T4_a0.5_seed42", "B0_squad_S1_seed123", "KD2_squad_S1_seed456"} <= set(planned)
    assert {"KD3_sst2_S1_l1_seed42", "teacher_sst2", "zero-shot_squad_S1"} <= set(planned)


def test_the_full_grid_has_16_cells_per_task_and_seed() -> None:
    settings = load(CONFIGS / "experiment.yaml", "full", env_file=None)
    assert sum(id.startswith("KD1_squad") for id in ids(settings)) == 48


def test_a_combined_method_has_the_hyper_parameters_of_both(settings_tree) -> None:
    settings = changed(settings_tree, methods=["KD1+KD3"], seeds=[1])
    assert "KD1+KD3_sst2_S1_T2_a0.3_l1_seed1" in ids(settings)


def test_a_second_student_is_trained_unless_it_is_the_quantized_proxy(settings_tree) -> None:
    models = settings_tree["models"]
    for name, trained in (("quantized-proxy", False), ("some/model", True)):
        students = models["students"] | {"S2": {"name": name}}
        planned = ids(changed(settings_tree, models=models | {"students": students}))
        assert any("_S2" in id for id in planned) is trained


def test_tasks_and_methods_narrow_the_plan(settings) -> None:
    narrowed = ids(settings, tasks=["squad"], methods=["B0"])
    assert narrowed == [
        "teacher_squad",
        "zero-shot_squad_S1",
        *(f"B0_squad_S1_seed{s}" for s in (42, 123, 456)),
    ]
    with pytest.raises(SettingsError, match="unknown task 'sst'; did you mean 'sst2'"):
        expand(settings, tasks=["sst"])
    with pytest.raises(SettingsError, match="unknown method"):
        expand(settings, methods=["KD4"])


def models(**changes: dict) -> dict:
    roles = {"teacher": {"name": "offline-teacher"}, "S1": {"name": "offline-student"}}
    made = {role: given | changes.get(role, {}) for role, given in roles.items()}
    return {"teacher": made["teacher"], "students": {"S1": made["S1"]}}


KD1 = RunSpec("KD1", "sst2", "S1", 42, 4.0, 0.5)
B0 = RunSpec("B0", "sst2", "S1", 42)


@pytest.mark.parametrize(
    ("change", "affected", "unaffected"),
    [
        ({"kd1": {"top_k": 8}}, [KD1], [B0]),
        ({"kd3": {"loss": "mse"}}, [], [KD1, B0]),
        ({"tasks": {"sst2": {"train_size": 7}, "squad": {}}}, [KD1, B0], []),
        ({"tasks": {"sst2": {}, "squad": {"train_size": 7}}}, [], [KD1, B0]),
        ({"tasks": {"sst2": {"training": {"learning_rate": 0.1}}, "squad": {}}}, [KD1, B0], []),
        ({"tasks": {"sst2": {"training": {"logging_steps": 3}}, "squad": {}}}, [], [KD1, B0]),
        ({"tasks": {"sst2": {"training": {"checkpoint_minutes": 1}}, "squad": {}}}, [], [KD1, B0]),
        ({"tasks": {"sst2": {"teacher_training": {"enabled": True}}, "squad": {}}}, [KD1], [B0]),
        ({"tasks": {"sst2": {"labels_text": {"positive": "Positive"}}, "squad": {}}}, [KD1, B0], []),
        ({"models": models(teacher={"system": "Be brief."})}, [KD1], [B0]),
        ({"models": models(S1={"chat_template_kwargs": {"enable_thinking": False}})}, [KD1, B0], []),
        ({"seeds": [1, 2]}, [], [KD1, B0]),
        ({"report": {"confidence": 0.9}}, [], [KD1, B0]),
        ({"dtype": "bfloat16"}, [KD1, B0], []),
    ],
)
def test_a_fingerprint_changes_with_what_decides_the_result(
    settings, settings_tree, change, affected, unaffected
) -> None:
    other = changed(settings_tree, **change)
    for spec in affected:
        assert run_fingerprint(settings, spec, SOURCES) != run_fingerprint(other, spec, SOURCES)
    for spec in unaffected:
        assert run_fingerprint(settings, spec, SOURCES) == run_fingerprint(other, spec, SOURCES)


@pytest.mark.parametrize(("source", "specs"), [("data", [KD1, B0]), ("S1", [KD1, B0]), ("teacher", [KD1])])
def test_a_fingerprint_changes_with_data_and_weights(settings, source, specs) -> None:
    for spec in specs:
        changed_source = run_fingerprint(settings, spec, SOURCES | {source: "other"})
        assert changed_source != run_fingerprint(settings, spec, SOURCES)
    assert run_fingerprint(settings, B0, SOURCES) == run_fingerprint(
        settings, B0, SOURCES | {"teacher": "other"}
    )
