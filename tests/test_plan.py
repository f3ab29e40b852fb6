"""A configuration expands to the documented runs, and a fingerprint changes exactly with what matters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdsuite.config import CONFIGS, Settings, load
from kdsuite.errors import SettingsError
from kdsuite.methods.base import Method, method
from kdsuite.plan import RunSpec, expand, refuse_gaps, run_fingerprint
from kdsuite.runtime.device import DeviceChoice

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


def test_an_id_does_not_depend_on_the_order_in_which_a_point_is_read_back(settings) -> None:
    for spec in expand(settings):
        again = spec.as_dict() | {"point": dict(sorted(spec.point.items()))}
        assert RunSpec(**again).run_id == spec.run_id


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
    assert narrowed == ["teacher_squad", "zero-shot_squad_S1", *(f"B0_squad_S1_seed{s}" for s in (42, 123, 456))]
    with pytest.raises(SettingsError, match="unknown task 'sst'; did you mean 'sst2'"):
        expand(settings, tasks=["sst"])
    with pytest.raises(SettingsError, match="unknown method"):
        expand(settings, methods=["KD4"])


def models(**changes: dict) -> dict:
    roles = {"teacher": {"name": "offline-teacher"}, "S1": {"name": "offline-student"}}
    made = {role: given | changes.get(role, {}) for role, given in roles.items()}
    return {"teacher": made["teacher"], "students": {"S1": made["S1"]}}


KD1 = RunSpec("KD1", "sst2", "S1", 42, {"temperature": 4.0, "alpha": 0.5})
B0 = RunSpec("B0", "sst2", "S1", 42)
CPU = ["cpu", "float32"]
TUNED = {"tasks": {"sst2": {"teacher_training": {"enabled": True}}, "squad": {}}}


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
        (TUNED | {"seeds": [1, 2]}, [KD1], [B0]),  # the teacher is tuned with the first
        ({"report": {"confidence": 0.9}}, [], [KD1, B0]),
        ({"device": "cpu", "dtype": "float32"}, [], [KD1, B0]),  # wishes: what came of them counts
    ],
)
def test_a_fingerprint_changes_with_what_decides_the_result(
    settings, settings_tree, change, affected, unaffected
) -> None:
    other = changed(settings_tree, **change)
    settings = changed(settings_tree, **({"tasks": change["tasks"]} if "seeds" in change and "tasks" in change else {}))
    for spec in affected:
        assert run_fingerprint(settings, spec, SOURCES, CPU) != run_fingerprint(other, spec, SOURCES, CPU)
    for spec in unaffected:
        assert run_fingerprint(settings, spec, SOURCES, CPU) == run_fingerprint(other, spec, SOURCES, CPU)


def test_what_methods_are_known_by_does_not_change_with_what_is_added_to_them(settings, settings_tree) -> None:
    """Else results on disk, which are what they were, would be made anew."""
    kd1 = {"divergence": "forward_kl", "beta": 0.5, "cross_tokenizer": "byte_map", "top_k": 64, "dtype": "float32"}
    kd3 = {"layers": "proportional", "max_layers": 2, "loss": "cosine", "cache": True}
    assert method("B0").identity(settings) == {}
    assert method("KD1").identity(settings) == {"kd1": kd1}
    assert method("KD2").identity(settings) == {"kd2": {"filter": "all", "min_confidence": 0.5}}
    assert method("KD3").identity(settings) == {"kd3": kd3}
    for added in ({"standardise": True}, {"targets": "sampled"}):
        assert method("KD1").identity(changed(settings_tree, kd1=added)) == {"kd1": kd1 | added}
    assert method("KD1+KD3").identity(settings) == {"kd1": kd1, "kd3": kd3}
    assert set(method("GKD").identity(settings)) == {"gkd"}


@pytest.mark.parametrize("change", [{"top_k": 8}, {"dtype": "float16"}])
def test_gkd_is_known_by_what_it_reads_of_the_cache_of_kd1(settings, settings_tree, change) -> None:
    known, other = (method("GKD").identity(one) for one in (settings, changed(settings_tree, kd1=change)))
    assert other == known | {"kd1": change}
    assert method("GKD").identity(changed(settings_tree, kd1={"temperatures": [3]})) == known


@pytest.mark.parametrize(("source", "specs"), [("data", [KD1, B0]), ("S1", [KD1, B0]), ("teacher", [KD1])])
def test_a_fingerprint_changes_with_data_and_weights(settings, source, specs) -> None:
    for spec in specs:
        changed_source = run_fingerprint(settings, spec, SOURCES | {source: "other"}, CPU)
        assert changed_source != run_fingerprint(settings, spec, SOURCES, CPU)
    assert run_fingerprint(settings, B0, SOURCES, CPU) == run_fingerprint(
        settings, B0, SOURCES | {"teacher": "other"}, CPU
    )


def test_a_fingerprint_changes_with_the_kind_of_device_and_the_dtype(settings) -> None:
    """Facts, not wishes: which of several devices of a kind it was is no fact of a result."""
    cuda = [DeviceChoice(torch.device(f"cuda:{n}"), torch.bfloat16, "", "", 1).numerics for n in (0, 1)]
    assert run_fingerprint(settings, B0, SOURCES, cuda[0]) == run_fingerprint(settings, B0, SOURCES, cuda[1])
    for other in (["cuda", "float32"], ["cpu", "bfloat16"]):
        assert run_fingerprint(settings, B0, SOURCES, other) != run_fingerprint(settings, B0, SOURCES, cuda[0])


def test_runs_that_would_share_a_folder_are_refused(settings_tree) -> None:
    tasks = {"a": {"preset": "sst2"}, "a_S1": {"preset": "sst2"}}
    students = {"S1": {"name": "some/model"}, "S1_S1": {"name": "other/model"}}
    with pytest.raises(SettingsError, match="two runs would have the id"):
        expand(changed(settings_tree, tasks=tasks, models=settings_tree["models"] | {"students": students}))
    tasks = {"a": {"preset": "sst2"}, "A": {"preset": "sst2"}}
    with pytest.raises(SettingsError, match="of teacher on task 'a' and of teacher on task 'A'; rename one"):
        expand(changed(settings_tree, tasks=tasks))
    with pytest.raises(SettingsError, match=r"at .*1\.5, .* and at .*1\.50000001, .*six digits"):
        expand(changed(settings_tree, methods=["KD1"], kd1={"temperatures": [1.5, 1.50000001]}))


def test_a_method_without_any_point_is_refused(settings, monkeypatch) -> None:
    monkeypatch.setattr(type(method("KD1")), "points", lambda self, settings: [])
    with pytest.raises(SettingsError, match="KD1 has nothing to run"):
        expand(settings)
    assert expand(settings, methods=["B0"])


def test_fractions_are_further_runs_after_those_of_the_whole_which_stay_what_they_are(settings, settings_tree) -> None:
    tasks = {"sst2": {"fractions": [0.05, 1, 0.25]}, "squad": {}}
    whole, several = expand(settings), expand(other := changed(settings_tree, tasks=tasks))
    assert [spec for spec in several if spec.fraction == 1] == whole
    some = [spec for spec in several if spec.fraction < 1]
    trained = [spec for spec in whole if spec.task == "sst2" and spec.trained]
    assert [spec.run_id for spec in some] == [f"{spec.run_id}_f{f}" for f in (0.25, 0.05) for spec in trained]
    assert KD1.as_dict().keys() == {"method", "task", "student", "seed", "point"}, "as it is recorded and fingerprinted"
    at = {f: replace(KD1, fraction=f) for f in (0.05, 0.25)}
    prints = [run_fingerprint(other, spec, SOURCES, CPU) for spec in (KD1, *at.values())]
    assert len(set(prints)) == 3 and prints[0] == run_fingerprint(settings, KD1, SOURCES, CPU)
    assert RunSpec(**at[0.05].as_dict()) == at[0.05]


def test_fractions_that_would_share_a_folder_are_refused(settings_tree) -> None:
    tasks = {"sst2": {"fractions": [0.1, 0.10000001, 1]}}
    with pytest.raises(SettingsError, match=r"those at 0\.1\d* and at 0\.1\d*; an id tells six digits"):
        expand(changed(settings_tree, tasks=tasks))


def test_what_learns_the_teachers_text_needs_its_answers(settings) -> None:
    """So that they are made for it, and its runs are other ones with another teacher."""

    class Taught(Method):
        name, lesson = "TT", "teacher"

    class Both(Taught):
        needs = frozenset({"states"})

    assert (Taught.needs, Both.needs) == ({"answers"}, {"answers", "states"})


def test_what_a_method_needs_is_held_against_what_the_teacher_offers(settings) -> None:
    specs = expand(settings)
    refuse_gaps(settings, specs, {"answers", "class_scores", "distributions", "states"})
    with pytest.raises(SettingsError, match="KD3 on sst2 needs the teacher's states, but this teacher offers only a"):
        refuse_gaps(settings, specs, {"answers", "class_scores", "distributions"})
    refuse_gaps(settings, expand(settings, methods=["B0"]), {"answers", "class_scores"})
    with pytest.raises(SettingsError, match="KD1 on squad needs the teacher's distributions"):
        refuse_gaps(settings, expand(settings, methods=["B0", "KD1", "KD2"]), {"answers", "class_scores"})


def test_what_methods_share_is_that_of_the_configuration_also_where_some_of_it_is_run(settings_tree) -> None:
    """Else `--method B0` were refused for what KD1 learns, and one of two methods took draws that are kept for both."""
    offers = {"answers", "class_scores", "distributions", "states"}
    tasks = {"squad": {"unlabeled": "raw.jsonl"}}
    settings = changed(settings_tree, tasks=tasks, methods=["B0", "KD1"])
    refuse_gaps(settings, expand(settings, methods=["B0"]), offers)
    wide = {"variants": {"KD1-wide": {"kd1": {"top_k": 128}}}, "kd1": {"targets": "sampled"}}
    settings = changed(settings_tree, methods=["KD1", "KD1-wide"], **wide)
    for some in (None, ["KD1"]):
        with pytest.raises(SettingsError, match="KD1 from drawn tokens has top_k 64 .* kept once for all .*, with 128"):
            refuse_gaps(settings, expand(settings, methods=some), offers)
