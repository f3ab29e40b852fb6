"""What the teacher says, from one forward pass per example over target positions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdsuite.models.forward import class_log_probs, head, supervised_states
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import ChatTokenizer, Encoded


@dataclass(frozen=True)
class OutputSettings:
    """What is kept per target position."""

    top_k: int
    dtype: str  # of the log-probabilities, float16 or float32
    temperatures: tuple[float, ...]  # T ≠ 1 of the grid; T = 1 is always kept
    layers: tuple[int, ...]  # teacher layers whose hidden states are kept
    labels: int  # number of label words that are scored, 0 for none


Record = dict[str, np.ndarray]


@torch.inference_mode()
def ask(model: Any, chat: ChatTokenizer, examples: Sequence[Encoded], keep: OutputSettings) -> list[Record]:
    """Teacher outputs of a batch, one record per example, with p target positions each.

    topk_ids [p, k] int32, topk_logprobs [p, k] at T = 1, logsumexp [p, 1 + temperatures] float32 of z / T,
    spans [p, 2] int32 (bytes of the predicted token in the target), hidden_<layer> [p, H] float16, and
    class_scores [labels] float32 if the task has labels.
    """
    batch = collate(examples, chat.pad_id).to(model.device)
    final, hidden = supervised_states(model, batch, keep.layers)
    logits = head(model, final, len(chat.token_bytes)).float()  # [n, V]
    target = batch.on_target
    outputs = _distribution(logits[target], keep)
    outputs |= {
        f"hidden_{layer}": states[target].half() for layer, states in zip(keep.layers, hidden, strict=True)
    }
    records = _split(outputs, batch.rows[target], len(batch.ids))
    for example, record in zip(examples, records, strict=True):
        record["spans"] = np.array(example.spans[example.gold_slice], dtype=np.int32)
    if keep.labels:
        shape = (len(batch.ids), keep.labels)
        scores = class_log_probs(logits, batch.targets, batch.rows, batch.choices, shape).cpu().numpy()
        records = [record | {"class_scores": row} for record, row in zip(records, scores, strict=True)]
    return records


def _distribution(logits: torch.Tensor, keep: OutputSettings) -> dict[str, torch.Tensor]:
    temperatures = torch.tensor((1.0, *keep.temperatures), device=logits.device)
    logsumexp = torch.stack(
        [(logits / t).logsumexp(-1) for t in temperatures], dim=-1
    )  # [n, 1 + temperatures]
    top, ids = logits.topk(min(keep.top_k, logits.shape[-1]), dim=-1)  # [n, k]
    dtype = torch.float16 if keep.dtype == "float16" else torch.float32
    return {
        "topk_ids": ids.int(),
        "topk_logprobs": (top - logsumexp[:, :1]).to(dtype),
        "logsumexp": logsumexp,
    }


def _split(outputs: dict[str, torch.Tensor], rows: torch.Tensor, count: int) -> list[Record]:
    """Flat outputs over a batch → a record per example (rows are sorted)."""
    ends = torch.bincount(rows, minlength=count).cumsum(0).tolist()
    arrays = {name: values.cpu().numpy() for name, values in outputs.items()}
    return [
        {name: values[start:end] for name, values in arrays.items()}
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def join(records: Sequence[Record], name: str) -> np.ndarray:
    """One array of a name over several records, end to end."""
    return np.concatenate([record[name] for record in records])
