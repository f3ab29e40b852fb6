"""Methods on real tiny models: α = 1 is B0, a student equal to its teacher loses nothing, gradients stay local."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from kdsuite.config import Settings, task_section
from kdsuite.errors import SettingsError
from kdsuite.methods.alignment import map_vocabulary
from kdsuite.methods.base import Kept, Pair
from kdsuite.methods.kd1 import KD1, DivergenceKind
from kdsuite.methods.kd3 import layer_pairs
from kdsuite.methods.losses import cross_entropy
from kdsuite.methods.targets import SoftTargets, TeacherTargets
from kdsuite.methods.terms import Distiller, Divergence, Features, OnTarget, Seen, Term
from kdsuite.models.forward import supervised_logits
from kdsuite.plan import expand, refuse_gaps
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.base import HERE
from kdsuite.teacher.cached import CachedTeacher, build_cache
from kdsuite.teacher.local import OutputSettings, ask

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

TEMPERATURES = (1.0, 2.0, 4.0)


def examples_of(task: str, chat, settings, split="validation"):
    kind = TASKS[task]
    return encode(task_of(kind.name, settings), chat, task_of(kind.name, settings).load(split)[:12])


def cache_of(folder: Path, task: str, model, chat, examples, layers=(1, 3), top_k=32) -> CachedTeacher:
    keep = OutputSettings(top_k, "float32", (2.0, 4.0), layers, len(TASKS[task].labels or ()))
    key = {"outputs": vars(keep) | {"temperatures": list(keep.temperatures)}}
    return build_cache(folder, key, examples, lambda batch: ask(model, chat, batch, keep), 4)


B0: dict[str, Term] = {"ce": OnTarget(1.0)}


def kd1(temperature: float, alpha: float = 0.5, **options) -> dict[str, Term]:
    return {"ce": OnTarget(alpha), "kd": Divergence(1 - alpha, temperature, **options)}


def sums(student, chat, terms, examples, targets=None):
    distiller = Distiller(student, len(chat.token_bytes), terms)
    batch = collate(examples, chat.pad_id)
    soft = targets.of(examples) if targets else None
    parts, counts = distiller(batch, soft), distiller.counts(batch, soft)
    return {part: total / counts[part] for part, total in parts.items()}


@pytest.fixture
def settings_of(sst2_settings, squad_settings):
    return {"sst2": sst2_settings, "squad": squad_settings}


@pytest.mark.parametrize("task", ["sst2", "squad"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_student_equal_to_its_teacher_has_no_kd_loss(
    tmp_path, task, temperature, settings_of, qwen_model, qwen_chat
) -> None:
    examples = examples_of(task, qwen_chat, settings_of[task])
    cache = cache_of(tmp_path, task, qwen_model, qwen_chat, examples)
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, qwen_chat), temperature, ())
    with torch.no_grad():
        parts = sums(qwen_model, qwen_chat, kd1(temperature), examples, targets)
    assert parts["ce"] > 1
    assert abs(parts["kd"]) < 1e-5


def test_cross_entropy_beside_class_scores_is_that_of_a_pass_of_its_own_over_the_vocabulary(
    tmp_path, settings_of, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    """Both are read off the same log-probabilities; another loss on the target gets the logits."""
    examples = examples_of("sst2", qwen_chat, settings_of["sst2"])
    cache = cache_of(tmp_path, "sst2", qwen_model, qwen_chat, examples)
    students = examples_of("sst2", llama_chat, settings_of["sst2"])
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 2.0, ())
    found, own = [], kd1(2.0) | {"ce": OnTarget(0.5, lambda logits, targets: cross_entropy(logits, targets))}
    for terms in (kd1(2.0), own):
        student = copy.deepcopy(llama_model)
        parts = sums(student, llama_chat, terms, students, targets)
        torch.stack([*parts.values()]).sum().backward()
        found.append((parts, student.lm_head.weight.grad))
    (parts, gradient), (others, expected) = found
    torch.testing.assert_close(parts, others)
    torch.testing.assert_close(gradient, expected)


DIVERGENCES = get_args(DivergenceKind)


@pytest.mark.parametrize("task", ["sst2", "squad"])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("how", ["byte_map", "uld", "hybrid"])
def test_every_divergence_is_zero_for_the_teacher_itself_and_positive_for_another_model(
    tmp_path, task, name, how, settings_of, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    examples = examples_of(task, qwen_chat, settings_of[task])
    cache = cache_of(tmp_path, task, qwen_model, qwen_chat, examples)
    options = {"kind": name, "beta": 0.3, "how": how}
    same, other = map_vocabulary(qwen_chat, qwen_chat), map_vocabulary(qwen_chat, llama_chat)
    with torch.no_grad():
        own = kd(qwen_model, qwen_chat, options, examples, TeacherTargets(cache, same, 2.0, ()))
        students = examples_of(task, llama_chat, settings_of[task])
        foreign = kd(llama_model, llama_chat, options, students, TeacherTargets(cache, other, 2.0, ()))
    assert abs(own) < 1e-4
    assert foreign > 0.001


def kd(student, chat, options, examples, targets) -> torch.Tensor:
    lonely = torch.from_numpy(targets.vocabulary.unmapped)
    return sums(student, chat, kd1(2.0, unmapped=lonely, **options), examples, targets)["kd"]


@pytest.mark.parametrize("how", ["byte_map", "uld", "hybrid"])
def test_standardised_logits_see_no_scale_and_are_exact_from_the_cache(
    tmp_path, how, settings_of, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    examples = examples_of("squad", qwen_chat, settings_of["squad"])
    keep = OutputSettings(16, "float32", (2.0,), standardised=True)
    key = {"outputs": keep.as_key() | {"temperatures": [2.0]}}
    cache = build_cache(tmp_path, key, examples, lambda batch: ask(qwen_model, qwen_chat, batch, keep), 4)
    own = Kept(dtype="float32", standardised=True)
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, qwen_chat), 2.0, (), kept=own)
    options, soft = {"how": how, "standardise": True}, targets.of(examples)
    logits = teacher_logits(qwen_model, qwen_chat, examples)
    lonely = torch.from_numpy(targets.vocabulary.unmapped)
    term, plain = (Divergence(1.0, 2.0, unmapped=lonely, **(options | {"standardise": s})) for s in (True, False))
    scaled = 3 * logits + 5
    assert term(Seen(scaled, torch.empty(0)), soft).abs().max() < 1e-4 < plain(Seen(scaled, torch.empty(0)), soft).max()
    if how == "byte_map":
        z = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        p, q = ((x.double() / x.double().std(-1, keepdim=True) / 2.0).softmax(-1) for x in (logits, z))
        kept = logits.topk(16).indices
        known = ~lonely[kept]  # special tokens are part of "other"
        p, q = (torch.cat([s := x.gather(-1, kept) * known, 1 - s.sum(-1, keepdim=True)], -1) for x in (p, q))
        expected = 4.0 * (p * (p / q).log()).nan_to_num().sum(-1)
        found = term(Seen(z, torch.empty(0)), soft)
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    students = examples_of("squad", llama_chat, settings_of["squad"])
    other = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 2.0, (), kept=own)
    with torch.no_grad():
        assert kd(llama_model, llama_chat, options, students, other) > 0.001


def teacher_logits(model, chat, examples) -> torch.Tensor:
    batch = collate(examples, chat.pad_id)
    with torch.no_grad():
        return supervised_logits(model, batch, batch.on_target, len(chat.token_bytes), ())[0].float()


def test_standardised_scores_of_three_labels_see_no_scale_and_two_labels_are_refused(settings_tree) -> None:
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    soft, term = SoftTargets(torch.arange(5), class_scores=scores), Divergence(1.0, 2.0, standardise=True)
    assert term(Seen(torch.empty(0), torch.empty(0), class_scores=3 * scores - 1), soft).abs().max() < 1e-6
    assert term(Seen(torch.empty(0), torch.empty(0), class_scores=-scores), soft).min() > 0.01
    settings = Settings.model_validate(settings_tree | {"kd1": {"standardise": True}})
    specs = expand(settings, tasks=["squad"])
    refuse_gaps(settings, specs, HERE)
    with pytest.raises(SettingsError, match="kd1.standardise with two labels"):
        refuse_gaps(settings, expand(settings), HERE)
    assert KD1.identity(settings)["kd1"]["standardise"] is True


def test_hybrid_adds_to_the_byte_map_only_what_has_no_counterpart(
    tmp_path, settings_of, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    cache = cache_of(tmp_path, "squad", qwen_model, qwen_chat, examples_of("squad", qwen_chat, settings_of["squad"]))
    students = examples_of("squad", llama_chat, settings_of["squad"])
    vocabulary = map_vocabulary(qwen_chat, llama_chat)
    poorer = vocabulary.to_student.copy()
    poorer[::3] = -1  # these tiny vocabularies have nearly everything in common
    targets = TeacherTargets(cache, replace(vocabulary, to_student=poorer), 2.0, ())
    with torch.no_grad():
        values = {
            how: kd(llama_model, llama_chat, {"how": how}, students, targets) for how in ("byte_map", "uld", "hybrid")
        }
    assert values["hybrid"] > values["byte_map"]
    assert values["uld"] <= 2 * 2.0  # at most 2, times T


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_alpha_one_is_b0(task, settings, settings_of, llama_model, llama_chat) -> None:
    examples = examples_of(task, llama_chat, settings_of[task])
    point = {"alpha": 1.0, "temperature": 4.0}
    terms = KD1.loss(settings, point, Pair())
    assert Distiller(llama_model, 1, terms).weights == Distiller(llama_model, 1, B0).weights == {"ce": 1.0}
    assert KD1.reads(settings, point) == frozenset()
    with torch.no_grad():
        assert torch.equal(
            sums(llama_model, llama_chat, B0, examples)["ce"], sums(llama_model, llama_chat, terms, examples)["ce"]
        )


def test_ce_of_a_batch_is_the_models_own_loss_on_the_target(settings_of, llama_model, llama_chat) -> None:
    [example] = examples_of("squad", llama_chat, settings_of["squad"])[:1]
    ids = torch.tensor([[*example.input_ids, example.targets[-1]]])
    labels = ids.clone()
    labels[:, : example.segments.count(0)] = -100
    with torch.no_grad():
        expected = llama_model(input_ids=ids, labels=labels).loss
        ours = sums(llama_model, llama_chat, B0, [example])["ce"]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_padding_and_batch_order_do_not_change_a_loss(
    tmp_path, task, settings_of, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    settings = settings_of[task]
    cache = cache_of(tmp_path, task, qwen_model, qwen_chat, examples_of(task, qwen_chat, settings))
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 2.0, ())
    examples = examples_of(task, llama_chat, settings)
    distiller = Distiller(llama_model, len(llama_chat.token_bytes), kd1(2.0, 0.3))

    def totals(batches, multiple=1):
        parts = [distiller(collate(b, llama_chat.pad_id, multiple), targets.of(b)) for b in batches]
        return {name: sum(p[name] for p in parts) for name in parts[0]}

    with torch.no_grad():
        whole = totals([examples])
        for other in (totals([[e] for e in examples]), totals([examples[::-1]]), totals([examples], multiple=32)):
            for name, value in whole.items():
                torch.testing.assert_close(other[name], value, atol=1e-3, rtol=1e-4)


def test_kd_touches_only_the_logits_that_predict_the_target(
    tmp_path, settings_of, qwen_model, qwen_chat, squad_example
) -> None:
    """For a one-token target: its own position and the end of turn behind it, nothing else."""
    settings = settings_of["squad"]
    [example] = encode(task_of("squad", settings), qwen_chat, [squad_example])
    cache = cache_of(tmp_path, "squad", qwen_model, qwen_chat, [example])
    student = copy.deepcopy(qwen_model)
    with torch.no_grad():
        student.model.embed_tokens.weight.mul_(1.5)
    seen: list[torch.Tensor] = []
    student.model.norm.register_forward_hook(lambda m, i, out: (out.retain_grad(), seen.append(out))[0])
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, qwen_chat), 2.0, ())
    parts = sums(student, qwen_chat, kd1(2.0), [example], targets)
    parts["kd"].backward()
    assert seen[0].grad is not None
    touched = seen[0].grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert touched == sorted(example.sources)


@pytest.mark.parametrize("task", ["sst2", "squad"])
@pytest.mark.parametrize("kind", ["gram", "procrustes"])
def test_geometry_of_another_model_trains_the_student_without_a_projector(
    tmp_path, task, kind, settings_of, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    cache = cache_of(tmp_path, task, qwen_model, qwen_chat, examples_of(task, qwen_chat, settings_of[task]))
    own, other = Features(1.0, kind, [(3, 3)], [(32, 32)]), Features(1.0, kind, [(2, 3)], [(16, 32)])
    assert not list(own.parameters())
    same, foreign = map_vocabulary(qwen_chat, qwen_chat), map_vocabulary(qwen_chat, llama_chat)
    with torch.no_grad():
        examples = examples_of(task, qwen_chat, settings_of[task])
        zero = sums(qwen_model, qwen_chat, {"feature": own}, examples, TeacherTargets(cache, same, None, (3,)))
    assert abs(zero["feature"]) < 1e-4
    student, examples = (
        copy.deepcopy(llama_model).requires_grad_(True),
        examples_of(task, llama_chat, settings_of[task]),
    )
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=3e-3), []
    for _ in range(20):
        targets = TeacherTargets(cache, foreign, None, (3,))
        loss = sums(student, llama_chat, {"feature": other}, examples, targets)["feature"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_features_train_student_and_projector_at_aligned_positions_only(
    tmp_path, settings_of, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    settings = settings_of["squad"]
    cache = cache_of(tmp_path, "squad", qwen_model, qwen_chat, examples_of("squad", qwen_chat, settings))
    examples = examples_of("squad", llama_chat, settings)
    pairs = layer_pairs(2, 3, "proportional", 2)
    assert pairs == [(1, 2), (2, 3)]
    student, term = copy.deepcopy(llama_model), Features(1.0, "cosine", pairs, [(16, 32)] * len(pairs))
    projectors = term.projectors
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), None, (1, 3))
    terms = B0 | {"feature": term}
    optimizer = torch.optim.AdamW([*student.parameters(), *projectors.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        parts = sums(student, llama_chat, terms, examples, targets)
        assert all(p.grad is None or p.grad.isfinite().all() for p in projectors.parameters())
        optimizer.zero_grad()
        parts["feature"].backward()
        optimizer.step()
        losses.append(parts["feature"].item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projectors.parameters())
    assert losses[-1] < 0.5 * losses[0]
