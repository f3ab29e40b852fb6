"""What is lost when only the teacher's top k tokens and the sum of all others are kept?

At the target positions of a task's examples, two models with one tokenizer are compared at several temperatures:
KL over {top k, "other"}, as KD1 has it, against KL over the whole vocabulary. The share of the value that
remains is at most 1 (merging outcomes never adds to a KL); what trains the student is the gradient, so its
direction (cosine) and relative error are measured too, with respect to the student's logits.

    python benchmarks/sparsity.py [--teacher FOLDER --student FOLDER] [--source FOLDER] [--task squad sst2]

Folders may contain {task}. Without them, the fine-tuned and the pretrained teacher of an offline run are taken
and its generated examples. Writes kd1_sparsity.png and .csv.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import CPU, table
from torch.nn import functional as F

from kdsuite.config import GENERATED, presets, task_section
from kdsuite.methods.divergences import forward_kl
from kdsuite.methods.losses import student_partition, teacher_partition, tempered
from kdsuite.models.forward import supervised_logits
from kdsuite.models.loading import ModelSource, load_chat, load_model
from kdsuite.report.drawing import styled
from kdsuite.tasks.batching import batches_by_length, collate
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode
from kdsuite.tasks.example import task_of

KEPT = (8, 16, 32, 64, 128)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
LOOKS = {  # Okabe and Ito's colours
    1.0: ("#0072B2", "o"),
    2.0: ("#009E73", "s"),
    4.0: ("#E69F00", "^"),
    8.0: ("#D55E00", "D"),
}


@dataclass(frozen=True)
class Row:
    """Means over positions; `kl_share` is the ratio of the two mean KLs, `tail` the teacher's mass that is merged."""

    task: str
    positions: int
    temperature: float
    k: int
    dense_kl: float
    kl_share: float
    gradient_cosine: float
    gradient_error: float
    tail: float


def encoded_examples(task: str, source: str, count: int, chat: ChatTokenizer) -> list[Encoded]:
    """The first examples of the reported split, in one tokenizer."""
    kind = task_of(task, task_section(task, source=source, validation_size=count))
    return encode(kind, chat, kind.load("validation")[:count])


@torch.inference_mode()
def target_logits(source: ModelSource, chat: ChatTokenizer, examples: Sequence[Encoded]) -> torch.Tensor:
    """Logits [n, V] of a model at the target positions of all examples."""
    model = load_model(source, CPU, torch.float32)
    parts = []
    for indices in batches_by_length([len(e) for e in examples], 8):
        batch = collate([examples[i] for i in indices], chat.pad_id)
        parts.append(supervised_logits(model, batch, batch.on_target, len(chat.token_bytes))[0])
    return torch.cat(parts)


def measure(task: str, teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> list[Row]:
    """Every k at one temperature, of logits [n, V] each."""
    p = tempered(teacher, temperature)  # [n, V]
    dense, direction = _with_gradient(lambda z: forward_kl(p, tempered(z, temperature)), student)

    def row(k: int) -> Row:
        kept, ids = p.topk(k)
        tail = p.scatter(-1, ids, float("-inf")).logsumexp(-1)
        known = teacher_partition(kept, tail, ids)
        sparse, ours = _with_gradient(lambda z: forward_kl(known, student_partition(z, ids, temperature)), student)
        return Row(
            task,
            len(p),
            temperature,
            k,
            dense_kl=dense.mean().item(),
            kl_share=(sparse.mean() / dense.mean()).item(),
            gradient_cosine=F.cosine_similarity(ours, direction, dim=-1).mean().item(),
            gradient_error=((ours - direction).norm(dim=-1) / direction.norm(dim=-1)).mean().item(),
            tail=tail.exp().mean().item(),
        )

    return [row(k) for k in KEPT if k < p.shape[-1]]


def _with_gradient(
    loss: Callable[[torch.Tensor], torch.Tensor], student: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [n] of a loss and its gradients [n, V] with respect to the student's logits."""
    logits = student.clone().requires_grad_()
    values = loss(logits)
    values.sum().backward()
    assert logits.grad is not None
    return values.detach(), logits.grad


def rows_of(task: str, teacher: Path, student: Path, source: str, count: int) -> list[Row]:
    """Everything about one task."""
    sources = [ModelSource(folder.name, str(folder)) for folder in (teacher, student)]
    chats = [load_chat(model) for model in sources]
    if chats[0].token_bytes != chats[1].token_bytes:
        raise SystemExit("the two models must have one tokenizer, else there is no dense KL to compare with")
    examples = encoded_examples(task, source, count, chats[0])
    said, asked = (target_logits(model, chats[0], examples) for model in sources)
    return [row for t in TEMPERATURES for row in measure(task, said, asked, t)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """A row of panels per task: what remains of the value, and how the gradient's direction agrees."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    with styled():
        figure = Figure(figsize=(7, 2.3 * len(tasks)), layout="constrained")
        panels = figure.subplots(len(tasks), 2, squeeze=False, sharex=True, sharey=True)
        for (left, right), task in zip(panels, tasks, strict=True):
            own = [row for row in rows if row.task == task]
            _lines(left, own, "kl_share")
            _lines(right, own, "gradient_cosine")
            merged = next(row.tail for row in own if row.temperature == 1 and row.k == 64)
            left.set_title(
                f"{task_section(task).title}: {100 * merged:.2g} % of the teacher's mass is beyond k = 64 at T = 1"
            )
            left.set_ylabel("share of the full KL")
            right.set_ylabel("cosine with its gradient")
        for axes in panels[-1]:
            axes.set_xlabel("kept tokens k (the rest is one bucket)")
        figure.savefig(path, dpi=200, metadata={"Software": None})


def _lines(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """A line per temperature, with its name at the end."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(KEPT, [str(k) for k in KEPT])
    axes.set_ylim(0, 1.04)
    axes.set_xlim(KEPT[0] * 0.9, KEPT[-1] * 1.75)
    axes.grid(True)
    lowest = 2.0
    for temperature, (color, marker) in LOOKS.items():
        own = [row for row in rows if row.temperature == temperature]
        values = [getattr(row, name) for row in own]
        axes.plot([row.k for row in own], values, marker=marker, color=color, markersize=4)
        lowest = min(values[-1], lowest - 0.085)  # names below each other where lines meet
        axes.text(own[-1].k * 1.1, lowest, f"T = {temperature:g}", color=color, va="center")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(r).items()} for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few examples, to see that it runs")
    parser.add_argument("--teacher", default="results/models/teacher_{task}")
    parser.add_argument("--student", default="results/models/offline/teacher")
    parser.add_argument("--source", default=GENERATED, help="folder with the task's official files")
    parser.add_argument("--task", nargs="+", choices=presets(), default=["squad", "sst2"])
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for task in options.task:
        teacher, student, source = (
            text.format(task=task) for text in (options.teacher, options.student, options.source)
        )
        rows += rows_of(task, Path(teacher), Path(student), source, 8 if options.quick else options.examples)
    draw(rows, options.output / "kd1_sparsity.png")
    write_csv(rows, options.output / "kd1_sparsity.csv")
    shown = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in asdict(row).values()] for row in rows]
    print(table(list(asdict(rows[0])), shown))


if __name__ == "__main__":
    main()
