"""Encoded examples → padded tensors, in batches of similar length.

Padding is to the right and causal attention never looks right, so plain text needs neither an attention mask nor
positions; only examples whose continuations lie side by side in one row do. Models that do not obey those get a
row per continuation. Supervised positions are flat lists over the whole batch, the same either way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.utils.data import Sampler

from kdsuite.tasks.encoding import Encoded

MEGABATCH = 32  # batches that are drawn at random together and then sorted by length


@dataclass
class Batch:
    """B examples in R rows of S padded tokens, n supervised positions, u of them with hidden states of their own.

    Side by side, the first tokens of an example's labels are predicted from the same state, the prompt's last.
    """

    ids: list[str]  # B
    input_ids: torch.Tensor  # [R, S]
    position_ids: torch.Tensor | None  # [R, S], or None for plain causal text: 0, 1, 2, …
    attention_mask: torch.Tensor | None  # [R, 1, S, S] bool, or None for plain causal attention
    rows: torch.Tensor  # [n] row of each supervised position
    columns: torch.Tensor  # [n] column it is predicted from
    owners: torch.Tensor  # [n] its example
    targets: torch.Tensor  # [n] the supervised token
    choices: torch.Tensor  # [n] its continuation
    gold: torch.Tensor  # [B] the continuation that is the target
    distinct: torch.Tensor  # [u] index into the supervised positions: those whose state no earlier one has
    shared: torch.Tensor  # [n] index into `distinct`: the position with the same state

    @property
    def on_target(self) -> torch.Tensor:
        """[n] bool: positions of the target, as against those of the other labels."""
        return self.choices == self.gold[self.owners]

    def to(self, device: torch.device) -> Batch:
        """A copy on a device; ids stay what they are."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        return replace(self, **{name: t if t is None else t.to(device) for name, t in tensors.items()})


def collate(examples: Sequence[Encoded], pad_id: int, multiple: int = 1, side_by_side: bool = True) -> Batch:
    """Pad examples to the longest of them (rounded up to `multiple`, for devices that dislike new shapes).

    `side_by_side`: continuations of an example in one row, else each in a row of its own behind the prompt.
    """
    rows = [row for e in examples for row in _rows(e, side_by_side)]
    length = -(-max(len(ids) for ids, _ in rows) // multiple) * multiple
    several = side_by_side and any(e.segments[-1] > 1 for e in examples)
    segments = _padded([e.segments for e in examples], length, -1) if several else None
    sources = [(at, column) for at, (_, columns) in enumerate(rows) for column in columns]
    first: dict[tuple[int, int], int] = {}  # of the supervised positions that have a state in common
    for at, source in enumerate(sources):
        first.setdefault(source, at)
    order = {source: i for i, source in enumerate(first)}
    return Batch(
        ids=[e.id for e in examples],
        input_ids=_padded([ids for ids, _ in rows], length, pad_id),
        position_ids=_padded([e.position_ids for e in examples], length, 0) if several else None,
        attention_mask=None if segments is None else _tree_mask(segments),
        rows=torch.tensor([row for row, _ in sources], dtype=torch.long),
        columns=torch.tensor([column for _, column in sources], dtype=torch.long),
        owners=torch.tensor([at for at, e in enumerate(examples) for _ in e.targets], dtype=torch.long),
        targets=torch.tensor([t for e in examples for t in e.targets], dtype=torch.long),
        choices=torch.tensor([c for e in examples for c in e.choices], dtype=torch.long),
        gold=torch.tensor([e.gold for e in examples]),
        distinct=torch.tensor(list(first.values()), dtype=torch.long),
        shared=torch.tensor([order[source] for source in sources], dtype=torch.long),
    )


def _rows(example: Encoded, side_by_side: bool) -> list[tuple[list[int], Sequence[int]]]:
    """The ids of an example's rows, and the columns that its supervised tokens, in order, are predicted from."""
    if side_by_side:
        return [(example.input_ids, example.sources)]
    kept, rows = example.segments.count(0), []
    for continuation in range(1, example.choices[-1] + 2):
        pairs = zip(example.input_ids, example.segments, strict=True)
        ids = [id for id, segment in pairs if segment in (0, continuation)]
        rows.append((ids, range(kept - 1, len(ids))))
    return rows


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    padded = [[*row, *[value] * (length - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long)  # in one go: a tensor per row takes twice the time


def _tree_mask(segments: torch.Tensor) -> torch.Tensor:
    """[B, S] segments → [B, 1, S, S]: each position sees its past in the prompt and in its own continuation."""
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    return (((key == 0) | (key == query)) & causal)[:, None]


class LengthGroupedSampler(Sampler[list[int]]):
    """Batches of similar length in an order that changes with seed and epoch.

    Examples are shuffled, cut into megabatches, sorted by length inside each, cut into batches, and the batches are
    shuffled, a short one last. Every example comes exactly once per epoch. Where only `some` are learned, by index, the
    batches are those of all without the others, and as many: an empty one takes an example of the largest.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, some: Collection[int] | None = None):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0
        self.some = range(len(self.lengths)) if some is None else frozenset(some)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return min(-(-len(self.lengths) // self.batch_size), len(self.some))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size * MEGABATCH
        mega = [sorted(order[at : at + size], key=self.lengths.__getitem__) for at in range(0, len(order), size)]
        order = [index for some in mega for index in some]
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()] + short
        learned = [[index for index in batch if index in self.some] for batch in batches]
        for batch in learned:
            if not batch and len(largest := max(learned, key=len)) > 1:
                batch.append(largest.pop())
        return (batch for batch in learned if batch)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, so that memory runs out at once or not at all."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
