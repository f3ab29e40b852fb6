"""One model over the devices of several processes (`runtime.ranks`): in shards that are put together layer by layer
where it is trained (FSDP2), or by heads and columns where it only answers (tensor parallelism of transformers).
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.distributed.configuration_utils import DistributedConfig

from kdsuite.errors import ModelError
from kdsuite.models.check import layers_tried, try_out
from kdsuite.models.forward import Traits, causal_lm, decoder_layers, traits_of
from kdsuite.models.loading import load_config, opened
from kdsuite.models.source import ModelSource
from kdsuite.runtime.ranks import here, together, whole


def sharded(load: Callable[[], Any], device: torch.device) -> Any:
    """The model that `load` gives on the CPU, each process with its shard of every weight; a layer is whole while it
    is computed with. They load one after the other, so that the machine holds one whole model at a time."""
    model: Any = None
    for turn in range(here().size):
        if turn == here().rank:
            model = load()
            lm = causal_lm(model)
            lm.kdsuite_traits = replace(traits_of(lm), gaps=False)  # for which a part of it is called by itself
            for layer in decoder_layers(lm):
                shard(layer, device)
            shard(lm, device)
        dist.barrier()
    lm, training = causal_lm(model), model.training
    with torch.no_grad():  # what it is put together in is made now: in inference mode nothing could be trained in it
        lm.eval()(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)
    model.train(training)
    return model


def shard(module: nn.Module, device: torch.device) -> None:
    """Keep a shard of a module's own weights; gradients are added up over the processes."""
    mesh = init_device_mesh(device.type, (here().size,))
    # after each pass, also the outermost: else its weights stay whole after one without a way back, and an optimizer
    # that is made then, or a checkpoint that is read, changes what is thrown away
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # no backend but NCCL has another reduction for a factor


@together
def whole_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """What `save_trained` writes of a model in shards, put together on the CPU; None of one that is whole."""
    if here().size == 1:
        return None
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapted = causal_lm(model) is not model
    every = [{name for name, _ in model.named_parameters(remove_duplicate=once)} for once in (False, True)]
    tied = every[0] - every[1]  # the head that is the embedding is stored once
    kept = {name: t for name, t in model.state_dict().items() if name not in tied and (not adapted or name in trained)}
    return {name: whole(t) for name, t in kept.items()}


def split(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """A frozen model whose heads and columns are divided, by transformers' own plan for its architecture.

    Nobody ever loads all of it, so that the trial is of its first layers alone. ModelError where it cannot be
    divided.
    """
    size = here().size
    config = load_config(source)
    what = f"model {source.name!r} ({config.model_type}) cannot be divided over {size} devices"
    if source.base:
        raise ModelError(f"{what}: it is an adapter; give the folder of the merged model")
    if not config.base_model_tp_plan:
        raise ModelError(f"{what}: transformers has no plan for it; set devices_per_job to 1, or take another model")
    for name in ("num_key_value_heads", "num_attention_heads"):
        if (heads := getattr(config, name, None)) and heads % size:
            raise ModelError(f"{what}: its {name} are {heads}; set devices_per_job to a divisor of that")
    traits = here().agreed(lambda: _traits_of_few(source, config, dtype))
    model = opened(source, device, dtype, distributed_config=DistributedConfig(tp_size=size))
    model.kdsuite_traits = traits
    return model


def _traits_of_few(source: ModelSource, config: Any, dtype: torch.dtype) -> Traits:
    few, count = copy.deepcopy(config), layers_tried(config)
    few.num_hidden_layers = count
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:count]
    return try_out(opened(source, torch.device("cpu"), dtype, config=few), source.name)
