"""What does training cost against TRL's: B0 and `SFTTrainer`, KD1 and `GKDTrainer`, the grid, GKD on-policy?

Both sides have the same model, examples, batch size, float32 and one thread, and are trainers as people use
them: ours with batches of similar length and the head on supervised positions only, TRL's in their defaults
(completion-only loss; GKD with `lmbda=0`, the teacher in every step, as against our cached outputs). Steps are the
first ones of a shuffled epoch over 2,000 SST-2-length or 500 SQuAD-length examples; time is per token of the
examples in them (prompt and target, no padding), so that a step with short examples counts as less. A whole
epoch's ratio is that of its tokens.

First, losses and gradients must be equal where the objective is the same: B0 and SFT on one batch; KD1 with
α = 0, T = 1 and all tokens kept, and GKD's forward KL (whose temperature is that of sampling, its loss has none).
Timed is KD1 as the suite does it (α = 0.5, T = 2, 64 tokens kept; on SST-2 the distribution over the two labels).

On-policy (λ = 1, JSD with β = 0.5, temperature 1) the student writes 32 tokens to every SQuAD prompt and the teacher
reads them, on both sides; TRL has two trainers for it, `GKDTrainer` and `DistillationTrainer`. From equal random states
all draw equal samples, whose losses, per sampled token, and gradients must be equal where ours keeps all tokens; timed
it keeps 64 and the sum of the others. `GKDTrainer` divides by the gold answers' tokens instead of the sampled ones, so
its steps weigh the same loss otherwise, at the same price.

    python benchmarks/trainers.py [--quick] [--repeats 2]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from measure import (
    Finding,
    Times,
    arguments,
    asked,
    clocked,
    keep,
    machine,
    peak_mb,
    ratio,
    spread,
    table,
    times_as_much,
)
from peers import installed, left_out, peer
from shapes import END, SMALL, STUDENT, TEACHER, TINY, as_plain, examples, model
from training import (
    NEW,
    Case,
    Steps,
    as_peft_has_it,
    asking,
    fine_tuning,
    logit_distillation,
    on_policy,
    on_policy_distiller,
    rollouts,
    student_of,
    teacher_of,
)
from transformers import PrinterCallback

from kdsuite.methods.terms import Distiller, Divergence, OnTarget
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import Encoded

CELLS = 16  # of the grid T × α
TOLERANCE = 1e-4  # relative, of losses and of gradients


# --- TRL


def sft(case: Case) -> Callable[[int], Steps]:
    student = as_peft_has_it(student_of(case))
    return lambda seed: _theirs(case, _sft_trainer(student, case, seed))


def gkd(case: Case) -> Callable[[int], Steps]:
    student, teacher = as_peft_has_it(student_of(case)), teacher_of(case)
    return lambda seed: _theirs(case, _gkd_trainer(student, teacher, case, seed))


def on_policy_gkd(case: Case) -> Callable[[int], Steps]:
    return _on_policy(case, _on_policy_gkd_trainer, "generate_on_policy_outputs")


def distillation(case: Case) -> Callable[[int], Steps]:
    return _on_policy(case, _distillation_trainer, "_generate_single_turn")


def _on_policy(case: Case, made: Callable[..., Any], writes: str) -> Callable[[int], Steps]:
    student, teacher = as_peft_has_it(student_of(case)), teacher_of(case)

    def prepare(seed: int) -> Steps:
        trainer = made(student, teacher, case, seed)
        sampling = clocked(trainer, writes)
        return replace(_theirs(case, trainer, lambda row: len(row["prompt"].split()) + NEW), sampling=sampling)

    return prepare


def _theirs(
    case: Case, trainer: Any, size: Callable[[dict[str, Any]], int] = lambda row: len(row["input_ids"])
) -> Steps:
    trainer.remove_callback(PrinterCallback)
    inner, counts = trainer.data_collator, []

    def counting(rows: list[dict[str, Any]]) -> Any:
        counts.append(sum(map(size, rows)))
        return inner(rows)

    trainer.data_collator = counting
    return Steps(trainer.train, lambda: sum(counts[: case.steps]))  # a batch more is fetched ahead


def _sft_trainer(student: Any, case: Case, seed: int) -> Any:
    options = peer("trl", "SFTConfig")(**_options(case, seed))
    return peer("trl", "SFTTrainer")(student, options, train_dataset=_rows(case), processing_class=_tokenizer())


def _gkd_trainer(student: Any, teacher: Any, case: Case, seed: int) -> Any:
    options = peer("trl.experimental.gkd", "GKDConfig")(**_options(case, seed), lmbda=0.0, beta=0.0)
    collator = peer("trl.trainer.sft_trainer", "DataCollatorForLanguageModeling")(pad_token_id=END)
    return peer("trl.experimental.gkd", "GKDTrainer")(
        student, teacher, options, collator, train_dataset=_rows(case), processing_class=_tokenizer()
    )


def _on_policy_gkd_trainer(student: Any, teacher: Any, case: Case, seed: int) -> Any:
    options = peer("trl.experimental.gkd", "GKDConfig")(
        **_options(case, seed), lmbda=1.0, beta=0.5, temperature=1.0, max_new_tokens=NEW
    )
    return peer("trl.experimental.gkd", "GKDTrainer")(
        _endless(student), teacher, options, train_dataset=_prompts(case), processing_class=_words(case)
    )


def _distillation_trainer(student: Any, teacher: Any, case: Case, seed: int) -> Any:
    kept = {name: value for name, value in _options(case, seed).items() if name != "max_length"}
    options = peer("trl", "DistillationConfig")(**kept, beta=0.5, temperature=1.0, max_completion_length=NEW)
    return peer("trl", "DistillationTrainer")(
        _endless(student), teacher, options, train_dataset=_prompts(case), processing_class=_words(case)
    )


def _endless(student: Any) -> Any:
    """The student without an end of turn: what it writes is as long on all sides."""
    student.config.eos_token_id = student.generation_config.eos_token_id = None
    return student


def _prompts(case: Case) -> Any:
    """Prompts as text for the one; the other is given their ids, too."""
    from datasets import Dataset

    return Dataset.from_list([_prompt(e) for e in case.epoch])


def _prompt(example: Encoded) -> dict[str, Any]:
    ids, labels = as_plain(example).values()
    mask = [int(label != -100) for label in labels]
    return {"prompt": " ".join(map(_word, example.prompt)), "input_ids": ids, "completion_mask": mask}


def _word(id: int) -> str:
    return f"<{id}>"


def _words(case: Case) -> Any:
    """A tokenizer with a word for each id; the end of turn is none of the model's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    count = case.student.vocabulary
    words = Tokenizer(models.WordLevel({_word(id): id for id in range(count + 1)}, unk_token=_word(END)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": _word(count), "pad_token": _word(END), "unk_token": _word(END)}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


def _rows(case: Case) -> Any:
    from datasets import Dataset

    return Dataset.from_list([as_plain(e) for e in case.epoch])


def _tokenizer() -> Any:
    """One is asked for, though there is nothing to tokenize."""
    from kdsuite.extras.offline.tokenizers import sentencepiece_tokenizer

    return sentencepiece_tokenizer(["no words"], 300)


def _options(case: Case, seed: int) -> dict[str, Any]:
    return {
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": case.batch,
        "max_steps": case.steps,
        "learning_rate": case.settings.learning_rate,
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": case.dtype == "bfloat16",
        "use_cpu": case.device == "cpu",
        "seed": seed,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


# --- equality


def assert_equal() -> tuple[float, float, float]:
    """The largest relative differences of loss and gradients: B0 and SFT, KD1 and GKD, GKD on-policy, at a tiny
    shape."""
    worst = 0.0
    for task in ("SST-2", "SQuAD"):
        case = Case(task, TINY, 8, 1)
        ours, theirs = model(TINY), model(TINY)
        some = examples(task, case.batch, TINY)
        batch = collate(some, END)
        distiller = Distiller(ours, TINY.vocabulary, {"ce": OnTarget(1.0)})
        count = distiller.counts(batch, None)["ce"]
        loss = distiller(batch, None)["ce"] / count
        trainer = _sft_trainer(theirs, case, 0)
        other = trainer.compute_loss(theirs, _collated(trainer, some), num_items_in_batch=torch.tensor(count))
        worst = max(worst, _difference(ours, loss, theirs, other))
    return worst, _distance_to_gkd(), _on_policy_distance()


def _distance_to_gkd() -> float:
    case = Case("SQuAD", TINY, 8, 1, TINY)
    some, teacher = examples("SQuAD", case.batch, TINY), model(TINY, seed=1).eval()
    batch, soft = collate(some, END), rollouts(case, teacher, some, TINY.vocabulary).gold.of(some)
    ours, theirs = model(TINY), model(TINY)
    distiller = Distiller(ours, TINY.vocabulary, {"kd": Divergence(1.0, 1.0)})
    count = distiller.counts(batch, soft)["kd"]
    loss = distiller(batch, soft)["kd"] / count
    trainer = _gkd_trainer(theirs, teacher, case, 0)
    other = trainer.compute_loss(theirs, _collated(trainer, some), num_items_in_batch=torch.tensor(count))
    return _difference(ours, loss, theirs, other)


def _on_policy_distance() -> float:
    case, teacher = Case("SQuAD", TINY, 8, 1, TINY), model(TINY, seed=1).eval()
    some = sorted(examples("SQuAD", case.batch, TINY), key=lambda e: -len(e.prompt))  # as ours reads them
    worst = 0.0
    for made in (_on_policy_gkd_trainer, _distillation_trainer):
        distiller, theirs = on_policy_distiller(case), model(TINY)
        written = rollouts(case, teacher, some, TINY.vocabulary)
        learned = written.learned(distiller.student, some, 0, 0)
        trainer = made(theirs, teacher, case, 0)
        torch.manual_seed(0)  # what ours draws from, at seed and step 0
        if made is _distillation_trainer:
            inputs = trainer._generate_and_score_completions([_prompt(e) for e in some])
            ids = inputs["completion_ids"]
        else:
            prompts = trainer.data_collator([_prompt(e) for e in some])
            said = trainer.generate_on_policy_outputs(theirs, prompts, trainer.generation_config)
            inputs, ids = dict(zip(("input_ids", "attention_mask", "labels"), said, strict=True)), said[0][:, -NEW:]
        assert ids.tolist() == [e.targets for e in learned], "the two sides draw different samples"
        batch, soft = collate(learned, END), written.of(learned)
        count = distiller.counts(batch, soft)["kd"]
        loss = distiller(batch, soft)["kd"] / count
        other = trainer.compute_loss(theirs, inputs, num_items_in_batch=torch.tensor(count))
        worst = max(worst, _difference(distiller.student, loss, theirs, other))
    return worst


def _collated(trainer: Any, some: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    return dict(trainer.data_collator([as_plain(e) for e in some]))


def _difference(ours: Any, loss: torch.Tensor, theirs: Any, other: torch.Tensor) -> float:
    loss.backward()
    other.backward()
    pairs = [(loss, other), *((a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))]
    worst = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)  # pyright: ignore[reportOptionalOperand, reportOptionalMemberAccess]
    assert worst < TOLERANCE, f"losses or gradients differ by {worst:.1e}"
    return worst


# --- measuring

Make = Callable[[Case], Callable[[int], Steps]]


@dataclass(frozen=True)
class Measured:
    """A side of a case."""

    cpu: list[float]  # seconds per 1,000 tokens, a value per repeat
    wall: list[float]
    sampling: list[float]  # of the CPU's


def measure(case: Case, sides: dict[str, Make], repeats: int) -> dict[str, Measured]:
    """Every side of a case; in time the sides take turns, each time with other steps of the epoch."""
    warm = Case(case.task, TINY, 2, 1, TINY)
    for make in sides.values():
        make(warm)(0).run()
    prepared = {name: make(case) for name, make in sides.items()}
    times = {name: Times() for name in sides}
    counts: dict[str, list[float]] = {name: [] for name in sides}
    sampling: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(repeats):
        for name, prepare in prepared.items():
            steps = prepare(seed)
            with times[name].taken():
                steps.run()
            counts[name].append(steps.tokens() / 1_000)
            sampling[name].append(sum(steps.sampling))

    def per_count(name: str, seconds: Sequence[float]) -> list[float]:
        return [a / b for a, b in zip(seconds, counts[name], strict=True)]

    return {
        name: Measured(*(per_count(name, seconds) for seconds in (times[name].cpu, times[name].wall, sampling[name])))
        for name in sides
    }


def alone(make: Make, case: Case) -> Callable[[], object]:
    """Steps for the measurement of memory, behind some at a tiny shape, so that libraries are warm."""
    make(Case(case.task, TINY, 2, 1, TINY))(0).run()
    return make(case)(0).run


def memory(case: Case, sides: dict[str, Make]) -> tuple[list[list[str]], Finding]:
    """Peak memory of steps in fresh processes, beyond the model: a row per side, and the ratio."""
    peaks = {name: peak_mb(alone, make, case) for name, make in sides.items()}
    rows = [[f"{label(case)}: {name}", f"{p:,.0f}", times_as_much(p, peaks[OURS])] for name, p in peaks.items()]
    return rows, Finding.of_ratio(f"B0, {label(case)}", SFT, "peak memory", [peaks[SFT]], [peaks[OURS]])


def label(case: Case, taught: bool = False) -> str:
    models = f"{case.student.name} student" + (f" of a {case.teacher.name} teacher" if taught else "")
    return f"{case.task}, {models}, batch {case.batch}"


def rows(label: str, measured: dict[str, Measured]) -> list[list[str]]:
    first = next(iter(measured.values()))
    return [
        [f"{label}: {name}", spread(m.cpu, 1), spread(m.wall, 1), ratio(m.cpu, first.cpu, 2)]
        for name, m in measured.items()
    ]


def findings(what: str, ours: Measured, theirs: Measured, against: str, **target: float) -> list[Finding]:
    return [
        Finding.of_ratio(what, against, "CPU time", theirs.cpu, ours.cpu, **target),
        Finding.of_ratio(what, against, "wall time", theirs.wall, ours.wall),
    ]


def grid(label: str, measured: dict[str, Measured]) -> Finding:
    """The whole grid: a pass of the teacher and 16 cached epochs, against 16 epochs with the teacher online."""
    once, cached, online = (measured[name].cpu for name in (ASKING, OURS, GKD))
    ours = [a + CELLS * b for a, b in zip(once, cached, strict=True)]
    theirs = [CELLS * seconds for seconds in online]
    return Finding.of_ratio(f"grid of {CELLS}, {label}", f"{CELLS} × {GKD}", "CPU time", theirs, ours, at_least=10)


def main() -> None:
    options = asked(arguments(__doc__, 2))
    b0, kd1, live = ((QUICK,), {QUICK: 1}, QUICK) if options.quick else (B0_CASES, KD1_CASES, ON_POLICY_CASE)
    ours: dict[str, Make] = {OURS: fine_tuning}
    cached: dict[str, Make] = {OURS: logit_distillation, ASKING: lambda case: asking(replace(case, batch=8))}
    written: dict[str, Make] = {OURS: on_policy}
    if installed("trl"):
        worst = [f"{difference:.0e}" for difference in assert_equal()]
        print("losses and gradients: B0 and SFT equal to {}, KD1 and GKD to {}, on-policy to {}\n".format(*worst))
        ours, cached = ours | {SFT: sft}, cached | {GKD: gkd}
        written |= {GKD: on_policy_gkd, DISTILLATION: distillation}
    else:
        print(left_out("trl") + "\n")
    lines, used, found = [], [], []
    for case in b0:
        measured = measure(case, ours, options.repeats)
        lines += rows(label(case), measured)
        if SFT in measured:
            found += findings(f"B0, {label(case)}", measured[OURS], measured[SFT], SFT, at_least=1.5)
            if case.task == "SQuAD" and not options.quick:
                peaks, finding = memory(case, ours)
                used, found = used + peaks, [*found, finding]
    for case, times in kd1.items():
        measured = measure(case, cached, times)
        name = label(case, taught=True)
        lines += rows(name, measured)
        if GKD in measured:
            found += findings(f"KD1, teacher cached, {name}", measured[OURS], measured[GKD], GKD, at_least=4)
            found.append(grid(name, measured))
    measured = measure(live, written, 1 if options.quick else ON_POLICY_REPEATS)
    name = f"on-policy, {label(live, taught=True)}"
    lines += rows(name, measured)
    apart = [
        [f"{name}: {side}", spread(m.sampling, 1), spread([a - b for a, b in zip(m.cpu, m.sampling, strict=True)], 1)]
        for side, m in measured.items()
    ]
    for side in (GKD, DISTILLATION):
        if side in measured:
            found += findings(f"GKD, {name}", measured[OURS], measured[side], side)
    print(f"{machine()}; medians (smallest–largest)\n")
    print(table(("trained", "CPU s / 1,000 tokens", "wall s / 1,000 tokens", "CPU ratio"), lines) + "\n")
    print(table(("trained on-policy", "CPU s / 1,000 tokens: sampling", "the rest"), apart) + "\n")
    if used:
        print(table(("trained, in a fresh process", "peak MB beyond the model", "ratio"), used))
    keep(found, options.findings)


OURS, SFT, GKD, ASKING = "kdsuite", "TRL SFTTrainer", "TRL GKDTrainer", "kdsuite, teacher asked once"
DISTILLATION = "TRL DistillationTrainer"
B0_CASES = (Case("SST-2", SMALL, 16, 1), Case("SQuAD", SMALL, 4, 2))
KD1_CASES = {
    Case("SST-2", STUDENT, 16, 1, TEACHER): 2,
    Case("SST-2", SMALL, 16, 1, TEACHER): 1,  # 1 : 20, as a 350M student of an 8B teacher
}  # with how often
ON_POLICY_CASE, ON_POLICY_REPEATS = Case("SQuAD", SMALL, 4, 2, STUDENT), 3
QUICK = Case("SQuAD", TINY, 4, 1, TINY)


if __name__ == "__main__":
    main()
