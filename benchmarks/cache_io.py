"""What does a cached teacher position cost on disk, and how fast is it read in training order?

Ours is the suite's own cache (`build_cache`, `CachedTeacher`), in its two dtypes. Against it: all logits of a
position as bfloat16 in a safetensors file, and the same top-64 as a line of JSON per example. All are read by
example id in the shuffled order of training, from files that the machine holds in memory already. What is
read must be the same before anything is timed.

    python benchmarks/cache_io.py [--quick] [--examples 500] [--repeats 5]
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import MB, Finding, Times, arguments, asked, ratio, show, side_by_side, spread
from safetensors import safe_open
from safetensors.torch import save_file

from kdsuite.store.files import folder_bytes
from kdsuite.tasks.batching import LengthGroupedSampler
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.cached import build_cache
from kdsuite.teacher.local import Record

VOCABULARY, KEPT, TEMPERATURES = 32_000, 64, (2.0, 4.0)
LONGEST = 8  # target tokens of an example, at most; SQuAD's answers have 4 to 5 with the end of turn
ROUNDING = 0.02  # of log-probabilities around −10, in float16 and in four decimals

Teacher = dict[str, torch.Tensor]  # logits [p, V] by example id, bfloat16
Keep = Callable[[Path, Teacher], "Store"]


@dataclass(frozen=True)
class Store:
    """A way to keep teacher outputs: how one example is read, and the log-probabilities [p, k] in what is read."""

    size: int  # bytes on disk
    read: Callable[[str], object]
    top: Callable[[str], np.ndarray]


def teacher(count: int) -> Teacher:
    """Random logits of 2 … LONGEST positions per example."""
    torch.manual_seed(0)
    lengths = torch.randint(2, LONGEST + 1, (count,)).tolist()
    return {str(i): (3 * torch.randn(n, VOCABULARY)).bfloat16() for i, n in enumerate(lengths)}


def record(logits: torch.Tensor, dtype: str) -> Record:
    """What the cache keeps of logits [p, V]."""
    logits = logits.float()
    top, ids = logits.topk(KEPT)
    others = logits.scatter(-1, ids, float("-inf"))
    whole, rest = (torch.stack([(z / t).logsumexp(-1) for t in (1.0, *TEMPERATURES)], dim=-1) for z in (logits, others))
    return {
        "topk_ids": ids.int().numpy(),
        "topk_logprobs": (top - whole[:, :1]).numpy().astype(dtype),
        "logsumexp": whole.numpy(),
        "log_tail": (rest - whole).numpy(),
        "spans": np.zeros((len(logits), 2), dtype=np.int32),
    }


def ours(dtype: str) -> Keep:
    def keep(folder: Path, logits: Teacher) -> Store:
        def ask(batch: Sequence[Encoded]) -> list[Record]:
            return [record(logits[e.id], dtype) for e in batch]

        cache = build_cache(folder, {}, [_example(id, len(z)) for id, z in logits.items()], ask, 16)
        return Store(folder_bytes(folder), cache.__getitem__, lambda id: cache[id]["topk_logprobs"])

    return keep


def _example(id: str, positions: int) -> Encoded:
    """What the cache looks at of an example: its id and its length."""
    return Encoded(id, [0] * positions, [], [], [], [], [], [], 0)


def dense(folder: Path, logits: Teacher) -> Store:
    path = folder / "logits.safetensors"
    save_file({"logits": torch.cat(list(logits.values()))}, path)
    ends = np.cumsum([len(z) for z in logits.values()]).tolist()
    where = dict(zip(logits, zip([0, *ends], ends, strict=False), strict=True))
    rows = safe_open(path, framework="pt").get_slice("logits")

    def read(id: str) -> torch.Tensor:
        start, end = where[id]
        return rows[start:end].clone()  # a slice alone reads nothing yet: the file is mapped

    return Store(folder_bytes(folder), read, lambda id: _top(read(id)).numpy())


def as_json(folder: Path, logits: Teacher) -> Store:
    path, where = folder / "top.jsonl", {}
    with path.open("wb") as file:
        for id, values in logits.items():
            where[id] = file.tell()
            top = values.float().log_softmax(-1).topk(KEPT)
            rounded = [[round(x, 4) for x in row] for row in top.values.tolist()]
            file.write(json.dumps({"ids": top.indices.tolist(), "logprobs": rounded}).encode() + b"\n")
    lines = path.open("rb")

    def read(id: str) -> tuple[np.ndarray, np.ndarray]:
        lines.seek(where[id])
        row = json.loads(lines.readline())
        return np.array(row["ids"], dtype=np.int32), np.array(row["logprobs"], dtype=np.float32)

    return Store(folder_bytes(folder), read, lambda id: read(id)[1])


def _top(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1).topk(KEPT).values


OURS = "kdsuite, float32"
KINDS: dict[str, Keep] = {
    OURS: ours("float32"),
    "kdsuite, float16": ours("float16"),
    "dense bfloat16": dense,
    "JSON top-64": as_json,
}


def stores(folder: Path, logits: Teacher) -> dict[str, Store]:
    """Every kind in a folder of its own, checked to hold the teacher's log-probabilities."""
    kept = {}
    for name, kind in KINDS.items():
        (own := folder / name).mkdir()
        kept[name] = kind(own, logits)
        for id, values in logits.items():
            difference = np.abs(kept[name].top(id) - _top(values).numpy()).max()
            assert difference < ROUNDING, f"{name}: example {id} is off by {difference:.3g}"
    return kept


def compare(logits: Teacher, repeats: int) -> tuple[dict[str, int], dict[str, Times]]:
    """Bytes on disk of every kind, and the times of reading all examples in training order."""
    ids = list(logits)
    sampler = LengthGroupedSampler([len(z) for z in logits.values()], 16, seed=42)
    order = [ids[i] for batch in sampler for i in batch]
    with tempfile.TemporaryDirectory() as folder:
        kept = stores(Path(folder), logits)
        times = side_by_side(
            {name: lambda read=store.read: [read(id) for id in order] for name, store in kept.items()}, repeats
        )
    return {name: store.size for name, store in kept.items()}, times


def row(name: str, positions: int, sizes: dict[str, int], times: dict[str, Times]) -> list[str]:
    """Size and reading of a kind, and how they compare to ours."""
    seconds = statistics.median(times[name].cpu)
    return [
        name,
        f"{sizes[name] / positions:,.0f}",
        f"{sizes[name] / sizes[OURS]:.1f}×",
        spread(times[name].cpu),
        f"{positions / seconds:,.0f}",
        ratio(times[name].cpu, times[OURS].cpu),
        f"{sizes[name] / MB / seconds:,.0f}",
    ]


def findings(sizes: dict[str, int], times: dict[str, Times]) -> list[Finding]:
    """What the others take against ours."""
    what = "teacher outputs, a position"
    others = [name for name in KINDS if name != OURS]
    return [
        finding
        for name in others
        for finding in (
            Finding.of_ratio(what, f"{name} / {OURS}", "bytes on disk", [sizes[name]], [sizes[OURS]]),
            Finding.of_ratio(what, f"{name} / {OURS}", "CPU time to read", times[name].cpu, times[OURS].cpu),
        )
    ]


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--examples", type=int, default=500)
    options = asked(parser)
    count = 10 if options.quick else options.examples
    logits = teacher(count)
    positions = sum(map(len, logits.values()))
    sizes, times = compare(logits, options.repeats)
    print(f"{count} examples, {positions:,} positions, vocabulary {VOCABULARY:,}, k = {KEPT}, T = 1, 2, 4")
    header = ("kept as", "bytes/position", "ratio", "CPU ms/pass", "positions/s", "time ratio", "MB/s")
    show(options, header, [row(name, positions, sizes, times) for name in KINDS], findings(sizes, times))


if __name__ == "__main__":
    main()
