"""How long: the arithmetic's operations at the measured speed.

N weights cost 2·N operations per token forward (a multiplication and an addition are two) and 4·N backward, of
which a frozen weight's gradient is half and is not computed: 6·N for full training, 4·N with adapters, 2·N more
where activations are recomputed (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Attention's own products are
left out: a few percent at these lengths. Answers are taken to be as long as they may get. What is there already is
not subtracted, the report's seconds are left out.
"""

import math
from itertools import groupby
from statistics import fmean

from kdsuite.config import OFFLINE_STUDENT, OFFLINE_TEACHER
from kdsuite.forecast.rows import PassRow, RunRow
from kdsuite.forecast.scene import TEACHER, Scene, if_known
from kdsuite.models.costs import Shape
from kdsuite.plan import RunSpec

PADDING = 1.02  # padded by real tokens, in batches of similar length
GENERATION_OVERHEAD = 5e-3  # seconds per generated token in transformers' own loop, on one CPU core
PRETRAINING = {OFFLINE_TEACHER: 1.5, OFFLINE_STUDENT: 1.0}  # in models.offline.pretraining_steps
PRETRAINING_TOKENS, PRETRAINING_POSITIONS = 16 * 70, 16 * 10  # per step


def forward_operations(shape: Shape, tokens: float, positions: float = 0.0) -> float:
    """Operations of a forward pass over `tokens`, with the LM head on `positions` of them."""
    return 2 * (shape.body_parameters * tokens + shape.vocabulary * shape.width * positions)


def training_operations(shape: Shape, tokens: float, positions: float, lora: bool, recomputed: bool) -> float:
    """Operations of training on `tokens`, with the LM head on `positions` of them."""
    return ((2 if lora else 3) + recomputed) * forward_operations(shape, tokens, positions)


def run_rows(scene: Scene) -> list[RunRow]:
    """The runs by task, method, student and fraction, in the plan's order."""
    methods = list(dict.fromkeys(spec.method for spec in scene.specs))
    ordered = sorted(
        scene.specs, key=lambda s: (scene.tasks.index(s.task), methods.index(s.method), str(s.student), -s.fraction)
    )
    rows = []
    for kind, group in groupby(ordered, key=lambda s: (s.task, s.method, s.student, s.fraction)):
        task, method, student, fraction = kind
        specs = list(group)
        seeds = sorted({s.seed for s in specs if s.seed is not None})
        each = if_known(lambda: fmean(run_seconds(scene, spec) for spec in specs))  # noqa: B023  called at once
        per_seed = len(specs) // max(len(seeds), 1)
        rows.append(RunRow(task, method, student, per_seed, seeds, each, [s.run_id for s in specs], fraction))
    return rows


def run_seconds(scene: Scene, spec: RunSpec) -> float:
    """Training, the dev split after every epoch, dev and reported split at the end."""
    role, size, section = spec.role, scene.sizes[spec.task], scene.settings.tasks[spec.task]
    final = _answer(scene, role, spec.task, size.dev + size.validation)
    if not scene.trains(spec):
        return final
    is_teacher = spec.method == TEACHER
    training = section.teacher_training if is_teacher else section.training
    learned = size.train + size.unlabeled * (spec.recipe is not None and bool(spec.recipe.needs))
    seen = training.epochs * (size.teacher_train if is_teacher else learned * spec.fraction)
    tokens, positions = seen * size.tokens * PADDING, seen * size.positions
    if request := spec.recipe and spec.recipe.request(scene.settings, spec.point):
        beside = scene.explained(spec.task, request)
        tokens, positions = tokens + seen * beside.tokens * PADDING, positions + seen * beside.positions
    lora = scene.settings.models.lora.enabled
    learning = _train(scene, role, tokens, positions, lora, training.gradient_checkpointing)
    if how := spec.recipe and not scene.labels(spec.task) and spec.recipe.on_policy(scene.settings, spec.point):
        written = how.share * seen  # by the student, and read by the teacher
        learning += _answer(scene, role, spec.task, written, training.batch_size) * how.first_tokens
        learning += _read(scene, TEACHER, written * size.tokens * PADDING, written * size.positions)
    return learning + _answer(scene, role, spec.task, size.dev) * math.ceil(training.epochs) + final


def _train(
    scene: Scene, role: str, tokens: float, positions: float, lora: bool = False, recomputed: bool = False
) -> float:
    operations = training_operations(scene.shape(role), tokens, positions, lora, recomputed)
    return operations / scene.rates(role).training


def _answer(scene: Scene, role: str, task: str, examples: float, batch_size: int | None = None) -> float:
    """Seconds to score the labels of so many examples, or to generate their answers."""
    asked, new_tokens = scene.sizes[task].reported_tokens, scene.new_tokens(task)
    return _write(scene, role, examples, asked, new_tokens, batch_size or scene.answer_batch(role))


def _write(scene: Scene, role: str, examples: float, asked: float, new_tokens: int, batch_size: int) -> float:
    """Seconds to read so many prompts, of `asked` tokens each, and to generate what follows them."""
    generation = _generate(scene, role, new_tokens, batch_size)
    return _read(scene, role, examples * asked * PADDING) + math.ceil(examples / batch_size) * generation


def _read(scene: Scene, role: str, tokens: float, positions: float = 0.0) -> float:
    return forward_operations(scene.shape(role), tokens, positions) / scene.rates(role).forward


def _generate(scene: Scene, role: str, new_tokens: int, batch_size: int) -> float:
    """Seconds for the new tokens of a batch: each step reads all weights, and computes with them."""
    shape, rates = scene.shape(role), scene.rates(role)
    weights = shape.body_parameters + shape.width * shape.vocabulary
    step = max(rates.token * weights, 2 * weights * batch_size / rates.forward)
    return new_tokens * (step + GENERATION_OVERHEAD)


def pass_rows(scene: Scene) -> list[PassRow]:
    """Everything but the runs, in the order in which it is done."""
    rows = []
    for name, role in scene.names.items():
        if name in PRETRAINING:
            steps = round(PRETRAINING[name] * scene.settings.models.offline.pretraining_steps)
            tokens, positions = steps * PRETRAINING_TOKENS, steps * PRETRAINING_POSITIONS
            seconds = if_known(_train, scene, role, tokens, positions)
            rows.append(PassRow(f"pretraining, {name}", tokens, seconds))
    for task, size in scene.sizes.items():
        taught = size.train + size.unlabeled
        tokens, what = round(taught * size.tokens), f"{task}, {taught:,} examples"
        if scene.wants_outputs(task):
            seconds = if_known(_read, scene, TEACHER, tokens * PADDING, taught * size.positions)
            rows.append(PassRow(f"teacher outputs, {what}", tokens, seconds))
        if scene.wants_answers(task):
            seconds = if_known(_answer, scene, TEACHER, task, taught)
            rows.append(PassRow(f"teacher answers, {what}", tokens + taught * scene.new_tokens(task), seconds))
        for request in scene.requests:
            each, new = scene.explained(task, request).tokens, request.max_new_tokens
            about = scene, TEACHER, taught, each - new, new, scene.answer_batch(TEACHER)
            rows.append(PassRow(f"teacher rationales, {what}", round(taught * each), if_known(_write, *about)))
    return [*rows, *(_benchmark(scene, task) for task in scene.tasks)]


def teacher_tokens(scene: Scene) -> int:
    """Tokens that a teacher behind a URL reads and writes: a prompt with each label or the target, answers as long as
    they may get, its own evaluation."""
    count = 0.0
    for task, size in scene.sizes.items():
        taught, texts, new = size.train + size.unlabeled, max(scene.labels(task), 1), scene.new_tokens(task)
        count += (size.dev + size.validation) * (size.reported_tokens * texts + new)
        count += taught * size.tokens * texts * scene.wants_outputs(task)
        count += taught * (size.tokens + new) * scene.wants_answers(task)
    return round(count)


def _benchmark(scene: Scene, task: str) -> PassRow:
    """Every variant in turn: warm-up and timed generation at every size, then answers to real examples."""
    settings, size = scene.settings.benchmark, scene.sizes[task]
    variants = dict.fromkeys((s.role, s.method) for s in scene.specs if s.task == task)
    roles = [role for role, _ in variants if not (role == TEACHER and scene.served)]
    roles += [scene.settings.students[0]] * len(settings.quantize) * settings.quantize_top_k
    steps, threads = settings.new_tokens + 3 * settings.warmup, len(settings.threads or (0,))
    reads = [(n, (1 + settings.warmup) * n * (size.tokens + size.longest)) for n in settings.batch_sizes]
    generated = sum(prompts + 2 * steps * n for n, prompts in reads)
    answered = settings.answers * (size.reported_tokens + scene.new_tokens(task))

    def seconds(role: str) -> float:
        once = sum(_read(scene, role, prompts) + 2 * _generate(scene, role, steps, n) for n, prompts in reads)
        return settings.blocks * (threads * once + _answer(scene, role, task, settings.answers, batch_size=1))

    tokens = round(len(roles) * settings.blocks * (threads * generated + answered))
    return PassRow(f"benchmark, {task}", tokens, if_known(lambda: sum(map(seconds, roles))))
