"""How large the benchmark is where the settings leave that open: at most a fifth of what all of the plan takes.

It is measured in blocks. Fewer of them make its figures noisier, which the benchmark itself tells
(`noise_percent`): with fewer than two it could not, so two are the least.
"""

from collections.abc import Sequence
from dataclasses import replace

from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.forecast.rows import PassRow, RunRow
from kdsuite.forecast.scene import TEACHER, Scene, if_known
from kdsuite.forecast.times import answer_seconds, generate_seconds, pass_rows, read_seconds, run_rows

MOST, LEAST = 5, 2  # blocks
ANSWERS = 4  # per block that is measured: 20 in a benchmark of five
P95 = 1.7  # length of a long prompt, relative to the mean: in both official data sets
SHARE = 0.2  # of the plan's time, the benchmark's included


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
    """Every variant in turn: warm-up and timed generation at every size, then answers to real examples."""
    size, blocks, answers = scene.sizes[task], settings.blocks or LEAST, settings.answers or 0
    variants = dict.fromkeys((s.role, s.method) for s in scene.specs if s.task == task)
    roles = [role for role, _ in variants if not (role == TEACHER and scene.served)]
    roles += [scene.settings.students[0]] * len(settings.quantize) * settings.quantize_top_k
    steps, threads = settings.new_tokens + 3 * settings.warmup, len(settings.threads or (0,))
    reads = [(n, (1 + settings.warmup) * n * (1 + P95) * size.tokens) for n in settings.batch_sizes]
    generated = sum(prompts + 2 * steps * n for n, prompts in reads)
    answered = answers * (size.reported_tokens + scene.new_tokens(task))

    def seconds(role: str) -> float:
        once = 0.0
        for n, prompts in reads:
            load = replace(scene.answer_load(role, task, n), positions=1.0, lora=None)
            once += read_seconds(scene, role, load, prompts) + 2 * generate_seconds(scene, role, load, steps)
        return blocks * (threads * once + answer_seconds(scene, role, task, answers, batch_size=1))

    tokens = round(len(roles) * blocks * (threads * generated + answered))
    return PassRow(f"benchmark, {task}", tokens, if_known(lambda: sum(map(seconds, roles))))
