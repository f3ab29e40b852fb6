"""What several processes do together in `jobs/test_team.py`: a process that follows imports it by this name."""

from __future__ import annotations

import torch
import torch.distributed as dist

from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded
from kdsuite.jobs.models import chat, for_training
from kdsuite.methods.terms import Distiller, OnTarget
from kdsuite.models.spread import whole_weights
from kdsuite.runtime.process import seed_everything
from kdsuite.runtime.ranks import here, together
from kdsuite.train.loop import Material, train

Weights = dict[str, torch.Tensor]


@together
def five_steps(bench: Bench, adapters: bool = True) -> tuple[Weights, list[float], float]:
    """Five steps on 21 examples in batches of 5, so that the last has one: weights, losses, and the largest entry of
    the smallest shard of any weight that is trained, of any process."""
    lora = bench.settings.models.lora.model_copy(update={"enabled": adapters})
    models = bench.settings.models.model_copy(update={"lora": lora})
    bench.settings = bench.settings.model_copy(update={"models": models})
    seed_everything(42)
    with for_training(bench, "little", checkpointing=False) as model:
        distiller = Distiller(model, len(chat(bench, "little").token_bytes), {"ce": OnTarget(1.0)})
        examples, how = encoded(bench, "mine", "little", "train"), bench.settings.tasks["mine"].training
        material = Material(examples, chat(bench, "little").pad_id, how, 42)
        record = train(distiller, material, bench.choice)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        own = [(p.to_local() if here().size > 1 else p).abs().max() for p in trained.values()]  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        least = torch.stack(own).min().detach()
        if here().size > 1:
            dist.all_reduce(least, dist.ReduceOp.MIN)
        weights = whole_weights(model) or {name: p.detach().clone() for name, p in trained.items()}
        return weights, [row["loss"] for row in record.history], float(least)


@together
def fail_at_another(bench: Bench) -> None:
    if here().rank:
        raise ValueError("a tensor of the wrong shape")
    dist.barrier()
