"""How large the benchmark is where the settings leave that open: at most a fifth of what all of the plan takes.

It is measured in blocks. Fewer of them make its figures noisier, which the benchmark itself tells
(`noise_percent`): with fewer than two it could not, so two are the least.
"""

from collections.abc import Sequence
from dataclasses import replace

from kdsuite.config import ZERO_SHOT
from kdsuite.config.benchmark import WARMUP_TOKENS, BenchmarkSettings, Scheme
from kdsuite.forecast.rows import PassRow, RunRow
from kdsuite.forecast.scene import TEACHER, Scene, if_known
from kdsuite.forecast.times import answer_seconds, generate_seconds, pass_rows, read_seconds, run_rows

MOST, LEAST = 5, 2  # blocks
ANSWERS = 4  # per block that is measured: 20 in a benchmark of five
P95 = 1.7  # length of a long prompt, relative to the mean: in both official data sets
SHARE = 0.2  # of the plan's time, the benchmark's included

Contestant = tuple[str, Scheme | None]  # whose model, how quantized


def proportionate(scene: Scene) -> BenchmarkSettings:
    """The benchmark that a plan can afford on its machine, as far as its settings leave that open."""
    if scene.settings.benchmark.blocks is not None:
        return _sized(scene.settings.benchmark, MOST)
    return _afforded(scene, [*run_rows(scene), *pass_rows(scene)])


def benchmark_rows(scene: Scene, others: Sequence[RunRow | PassRow]) -> list[PassRow]:
    """What the benchmark of every task takes beside the `others`, and how it was cut down, if it was."""
    settings = _afforded(scene, others)
    rows, told = _rows(scene, settings), ""
    if scene.settings.benchmark.blocks is None and settings.blocks != MOST:
        within = _seconds(rows) <= _most(others)
        told = f", {settings.blocks} blocks instead of {MOST}: "
        told += "at most a fifth of the plan" if within else "the fewest, and more than a fifth of the plan"
    return [replace(row, what=row.what + told) for row in rows]


def _afforded(scene: Scene, others: Sequence[RunRow | PassRow]) -> BenchmarkSettings:
    own = scene.settings.benchmark
    for blocks in range(MOST, LEAST, -1):
        settings = _sized(own, blocks)
        if own.blocks is not None or _seconds(_rows(scene, settings)) <= _most(others):
            return settings
    return _sized(own, LEAST)


def _most(others: Sequence[RunRow | PassRow]) -> float:
    """Seconds that the benchmark may take beside them."""
    return SHARE / (1 - SHARE) * _seconds(others)


def _seconds(rows: Sequence[RunRow | PassRow]) -> float:
    return sum(row.seconds or 0.0 for row in rows)


def _sized(settings: BenchmarkSettings, blocks: int) -> BenchmarkSettings:
    """With so many blocks, and answers in proportion, where these are left open."""
    open_ones = {"blocks": blocks, "answers": ANSWERS * blocks}
    return settings.model_copy(update={key: n for key, n in open_ones.items() if getattr(settings, key) is None})


def _rows(scene: Scene, settings: BenchmarkSettings) -> list[PassRow]:
    return [_row(scene, task, settings) for task in scene.tasks]


def _row(scene: Scene, task: str, settings: BenchmarkSettings) -> PassRow:
    """Once: memory is measured, quantized students are scored. In every block, every model in turn and a student a
    second time: warm-up and timed generation at every size, then answers to real examples."""
    size, new, warmup = scene.sizes[task], settings.new_tokens, settings.warmup
    models, answers = contestants(scene, task), settings.answers or 0
    turn = [*models, *sorted(models, key=lambda model: model[0] == TEACHER)[:1]]
    quantized = [model for model in models if model[1]]
    turns = (settings.blocks or LEAST) * len(settings.thread_counts(scene.machine.device, scene.machine.threads))
    timed, once = (1 + warmup, new + WARMUP_TOKENS * warmup), (1, new)  # times that a prompt is read, steps after it

    def generated(reads: int, steps: int) -> float:
        return sum(n * (reads * (1 + P95) * size.tokens + 2 * steps) for n in settings.batch_sizes)

    def generating(model: Contestant, reads: int, steps: int) -> float:
        (role, scheme), seconds = model, 0.0
        for n in settings.batch_sizes:
            load = replace(scene.answer_load(role, task, n), positions=1.0, lora=None, quantization=scheme)
            seconds += read_seconds(scene, role, load, n * reads * (1 + P95) * size.tokens)
            seconds += 2 * generate_seconds(scene, role, load, steps)
        return seconds

    def answering(model: Contestant, examples: int, batch_size: int | None = None) -> float:
        role, scheme = model
        return answer_seconds(scene, role, task, examples, batch_size, lora=None, quantization=scheme)

    def seconds() -> float:
        measured = turns * sum(generating(model, *timed) + answering(model, answers, batch_size=1) for model in turn)
        measured += sum(generating(model, *once) for model in models if settings.memory)
        return measured + sum(answering(model, size.validation) for model in quantized)

    answer = size.reported_tokens + scene.new_tokens(task)
    tokens = turns * len(turn) * (generated(*timed) + answers * answer)
    tokens += settings.memory * len(models) * generated(*once) + len(quantized) * size.validation * answer
    return PassRow(f"benchmark, {task}", round(tokens), if_known(seconds))


def contestants(scene: Scene, task: str) -> list[Contestant]:
    """The models that are measured on a task (`jobs.contestants`)."""
    settings, students = scene.settings.benchmark, scene.settings.students
    models: list[Contestant] = []
    planned = dict.fromkeys((s.role, s.method) for s in scene.specs if s.task == task)
    models += [(role, None) for role, _ in planned if not (role == TEACHER and scene.served)]
    for student in students:
        trained = sum(role == student and method != ZERO_SHOT for role, method in planned)
        proxy = scene.settings.proxy is not None and student == students[0]
        models.extend((student, scheme) for rank in range(trained) for scheme in settings.schemes(rank, proxy))
    return models
