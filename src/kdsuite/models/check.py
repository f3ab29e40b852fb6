"""A model is checked before it is believed: a trial on a few tokens, for every model that is loaded.

Its logits must be finite, must not depend on what follows, and must be the same however this suite computes them:
picked in front of the head, with continuations side by side, padded on the left, behind a shared beginning, of some
prompts or of all texts. What a model cannot do (ALiBi knows no positions but columns, a state-space model no masks) is
done another way, which costs time and nothing else; what no way helps against is refused. Whether the model fits a task
(positions, ids) is read off its configuration.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kdsuite.errors import ModelError
from kdsuite.models.beginning import read_once
from kdsuite.models.forward import Traits, causal_lm, collate_for, decoder_layers, supervised_logits, supervised_states
from kdsuite.models.generation import Family, decode
from kdsuite.runtime import ranks
from kdsuite.runtime.memory import is_out_of_memory
from kdsuite.tasks.batching import Batch, collate
from kdsuite.tasks.encoding import Answer, ChatTokenizer, Encoded, lay_out

TOKENS = 12
OWN_IDS = list(range(TOKENS, 2 * TOKENS))  # of the small copy
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")  # of configurations
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}  # relative to the compared's spread
GRADIENTS = 0.3  # relative difference from the CPU's: 16 bits round up to 0.1 away, wrong ones are off by far more
CANNOT = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, LookupError)


def layers_tried(config: Any) -> int:
    """How many of a model's layers it takes to have two at least, and one of every kind that is declared."""
    text = config.get_text_config()
    declared = getattr(text, "layer_types", None) or [None] * text.num_hidden_layers
    return min(text.num_hidden_layers, max(2, 1 + max(declared.index(kind) for kind in declared)))


@torch.inference_mode()
def try_out(model: Any, name: str) -> Traits:
    """What a freshly loaded causal language model can do. ModelError, one line, if it is of no use here.

    The ways of computing are compared on a small copy of it in float32, so that rounding hides nothing.
    """
    lm = causal_lm(model)
    ids, half = _tokens(lm), TOKENS // 2
    _logits(lm, ids, name)
    small = _small_copy(lm, ids)
    what = f"model {name!r} ({type(small).__name__})"
    read = _logits(small, OWN_IDS, name)
    if not _same(read[:, :half], _logits(small, [*OWN_IDS[:half], *reversed(OWN_IDS[half:])], name)[:, :half]):
        raise ModelError(
            f"{what} is not causal: later tokens change what it says of earlier ones; "
            "give a decoder-only language model"
        )
    # some count positions otherwise when they generate (RoBERTa as a decoder)
    if not _same(_next_logits(small, [OWN_IDS], Family(TOKENS - 1, (0,)))[0, 0].float(), read[0, -1]):
        raise ModelError(
            f"{what} says something else when transformers generates from it than when it reads the same tokens; "
            "take another model"
        )
    return _compare_ways(small)


def _compare_ways(lm: Any) -> Traits:
    """By a model that `_small_copy` made."""
    ids, example = OWN_IDS, _example(OWN_IDS)
    apart, row = (collate([example], _filler(lm), side_by_side=side).to(lm.device) for side in (False, True))
    positions = torch.arange(len(example.targets), device=lm.device)
    lm.kdsuite_traits = Traits(split=False)
    expected, _ = supervised_logits(lm, apart, positions, None)
    lm.kdsuite_traits = Traits()
    alone = [_next_logits(lm, [prompt], Family(len(prompt) - 1, (0,)))[0] for prompt in (ids, ids[:7])]

    def picked(batch: Batch) -> bool:
        return _same(supervised_logits(lm, batch, positions, None)[0], expected)

    def generates(*families: Family) -> bool:
        together = _next_logits(lm, [ids, ids[:7]], *families)
        return all(_same(one, other) for one, other in zip(together, alone, strict=True))

    def beginning_is_read() -> bool:
        """Whether texts of two lengths say the same, in all layers, where what they begin with was read before."""
        other = lay_out("another", [*ids[:3], *ids[9:11]], {"one": Answer(ids[5:7], [(0, 0)] * 2, [])}, "one")
        layers = list(range(1, lm.config.get_text_config().num_hidden_layers + 1)) if traits.layers else []
        batches = [collate([example, other], _filler(lm), side_by_side=side) for side in {False, traits.side_by_side}]

        def said() -> list[torch.Tensor]:
            where = torch.arange(len(batches[0].targets), device=lm.device)
            pairs = [supervised_logits(lm, batch.to(lm.device), where, None, layers) for batch in batches]
            return [tensor for logits, states in pairs for tensor in (logits, *states)]

        whole = said()
        with read_once(lm, [example, other], least=1):
            return all(_same(behind, before) for behind, before in zip(said(), whole, strict=True))

    def layers_are_read() -> bool:
        """Whether the states of all layers are those that transformers itself gives, however they are read."""
        layers = list(range(1, lm.config.get_text_config().num_hidden_layers + 1))
        _, read = supervised_logits(lm, apart, positions, None, layers)
        [lowest] = supervised_states(lm, apart, positions, layers[:1])
        own = lm(input_ids=apart.input_ids, use_cache=False, output_hidden_states=True).hidden_states
        own = [states[apart.rows[positions], apart.columns[positions]] for states in own]
        theirs = all(any(_same(one, other) for other in own) for one in read)  # not all count them alike
        return theirs and _same(lowest, read[0])

    lm.kdsuite_traits = traits = Traits(
        split=_holds(lambda: picked(apart)),
        side_by_side=_holds(lambda: picked(row)),
        layers=_holds(layers_are_read),
        left_padding=_holds(lambda: generates(Family(11, (0,)), Family(6, (1,)))),
        gaps=_holds(lambda: generates(Family(5, (0, 1)))),
        window=window_of(lm.config),
    )
    return replace(traits, beginning=_holds(beginning_is_read))


def window_of(config: Any) -> int | None:
    """The fewest tokens that any layer of a model looks back; None if all look back to the beginning."""
    text = config.get_text_config()
    if getattr(text, "use_sliding_window", True) is False:
        return None
    found = [getattr(text, name, None) for name in WINDOWS]
    return min((size for size in found if isinstance(size, int) and size > 0), default=None)


def refuse_unless_fits(config: Any, chat: ChatTokenizer, name: str, longest: dict[str, int]) -> None:
    """ModelError if a model cannot read what a tokenizer writes.

    `longest`: per key of the settings the most tokens that it lets a text have.
    """
    text = config.get_text_config()
    largest = max(chat.end_id, *(i for i, spelled in enumerate(chat.token_bytes) if spelled is not None))
    if largest >= text.vocab_size:
        raise ModelError(
            f"model {name!r} has {text.vocab_size:,} token embeddings, but its tokenizer has ids up to "
            f"{largest:,}; give the tokenizer that belongs to it"
        )
    positions = getattr(text, "max_position_embeddings", None)
    for key, length in longest.items():
        if isinstance(positions, int) and 0 < positions < length:
            raise ModelError(
                f"model {name!r} has {positions} positions, but {key} is {length}; set it to {positions} or less, "
                "or take another model"
            )


def try_training(model: Any, name: str) -> None:
    """A backward pass through a model that is ready for training. ModelError if its gradients are of no use.

    On an accelerator the gradients of its first layer are compared with the CPU's, for two shapes one after the
    other: on MPS they were reported to be wrong by a factor of a thousand after a change of shape.
    """
    lm = causal_lm(model)
    batch = collate_for(lm, [_example(_tokens(lm))], _filler(lm)).to(lm.device)
    advice = "try it without adapters (models.lora.enabled=false), or take another model"
    with _told(f"model {name!r} cannot be trained with these settings ({{}}); {advice}"):
        logits, _ = supervised_logits(lm, batch, torch.arange(len(batch.targets)), None)
        F.cross_entropy(logits.float(), batch.targets).backward()
    gradients = [ranks.whole(p.grad) for p in model.parameters() if p.requires_grad and p.grad is not None]
    if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
        raise ModelError(
            f"model {name!r} cannot be trained as {lm.dtype} on {lm.device.type}: its gradients are not finite; "
            "set dtype to float32, or another device"
        )
    model.zero_grad(set_to_none=True)
    if lm.device.type == "cpu" or ranks.here().size > 1:  # of a model in shards nothing can be copied
        return
    with _few_layers(lm):  # of what all of it computes with, at the price of a few layers
        there = copy.deepcopy(lm.base_model).requires_grad_(True)
    here = copy.deepcopy(there).to("cpu", torch.float32)
    if (wrong := gradients_apart(there, here, _tokens(lm))) > GRADIENTS:
        raise ModelError(
            f"model {name!r} cannot be trained on {lm.device.type}: gradients there differ from the CPU's by "
            f"{wrong:.0%}; set device to cpu, or another version of torch"
        )


def gradients_apart(there: Any, here: Any, ids: Sequence[int]) -> float:
    """How far the gradients of two copies of a backbone are apart, relative to `here`'s; the larger of two shapes.

    Of all parameters together: some have none but rounding (a bias of keys moves no softmax).
    """
    worst = 0.0
    for length in (len(ids), len(ids) // 2 + 1):
        away = torch.linspace(-1, 1, length)[None, :, None]  # what the gradient is taken of must not be flat
        for module in (there, here):
            module.zero_grad()
            place = next(module.parameters()).device
            states = module(input_ids=torch.tensor([ids[:length]], device=place), use_cache=False).last_hidden_state
            (states.float() * away.to(place) * states.detach().float().sin()).sum().backward()
        pairs = [
            (one.grad.float().cpu(), other.grad)
            for one, other in zip(there.parameters(), here.parameters(), strict=True)
            if one.grad is not None and other.grad is not None
        ]
        apart = sum((one - other).square().sum() for one, other in pairs)
        whole = sum(other.square().sum() for _, other in pairs)
        worst = max(worst, float((apart / whole) ** 0.5))
    return worst


@contextmanager
def _told(message: str) -> Iterator[None]:
    """What a model cannot do becomes a ModelError, the message with the reason at `{}`."""
    try:
        yield
    except CANNOT as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise ModelError(message.replace("{}", reason)) from error


def _holds(check: Callable[[], bool]) -> bool:
    """Whether a way of computing works and is right; an architecture that lacks an argument does not have it."""
    try:
        with _told("{}"):
            return check()
    except ModelError:
        return False


def _tokens(lm: Any) -> list[int]:
    """Some ids from all over the vocabulary, no two alike."""
    size = lm.config.get_text_config().vocab_size
    spread = size > 8 * TOKENS
    return [(7 + (size // TOKENS) * i) % size if spread else i for i in range(TOKENS)]


def _example(ids: Sequence[int]) -> Encoded:
    """A prompt and two continuations of four tokens each, none of which is special in any way."""
    answers = {name: Answer(list(ids[at : at + 4]), [(0, 0)] * 4, []) for name, at in (("one", 4), ("two", 8))}
    return lay_out("trial", list(ids[:4]), answers, "one")


def _filler(lm: Any) -> int:
    """What fills up rows, as else the end of turn does: not the model's pad token, for which some count no position."""
    return 1 if lm.config.get_text_config().pad_token_id == 0 else 0


def _logits(lm: Any, ids: Sequence[int], name: str) -> torch.Tensor:
    """The model's own logits [1, T, V] in float32. ModelError if it gives none, or if they are not finite."""
    with _told(f"model {name!r} cannot be run: {{}}; give a decoder-only language model"):
        logits = lm(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False).logits.float()
    if not logits.isfinite().all():
        raise ModelError(
            f"model {name!r} gives logits that are not finite as {lm.dtype}; if dtype float32 does not help, "
            "its weights are damaged: get them again"
        )
    return logits


def _next_logits(lm: Any, prompts: Sequence[list[int]], *families: Family) -> torch.Tensor:
    """Logits [B, 2, V] of two further tokens, in the order of the families' members."""
    settings = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(decode(lm, prompts, families, _filler(lm), settings).logits, dim=1)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same but for rounding, measured by their spread."""
    bound = ROUNDING[other.dtype] * other.float().std().item()
    return one.shape == other.shape and (one - other).abs().max().item() <= bound


def _small_copy(lm: Any, ids: Sequence[int]) -> Any:
    """The model in float32 with a few layers (see `_few_layers`) and `ids` as its OWN_IDS.

    The ids below fill up rows. A quantized model stays in its dtype.
    """
    tables = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    parameters = {id(p): p for table in tables if table is not None for p in table.parameters()}
    chosen = {key: nn.Parameter(p[[*ids, *ids]]) for key, p in parameters.items()}
    with _few_layers(lm):
        small = copy.deepcopy(lm, memo=chosen)
    small = small if getattr(lm, "hf_quantizer", None) else small.float()
    small.get_input_embeddings().padding_idx = None  # it lies beyond
    return small


@contextmanager
def _few_layers(lm: Any) -> Iterator[None]:
    """The model without its upper layers: two at least, and one of every kind. All of it where none are found."""
    try:
        layers = decoder_layers(lm)
    except LookupError:
        yield
        return
    text = lm.config.get_text_config()
    declared = getattr(text, "layer_types", None) or [None] * len(layers)
    kinds = [(type(layer), kind) for layer, kind in zip(layers, declared, strict=True)]
    enough = max(2, 1 + max(kinds.index(kind) for kind in kinds))
    children = ((module, *child) for module in lm.base_model.modules() for child in module.named_children())
    owner, name = next((module, name) for module, name, child in children if child is layers)
    setattr(owner, name, nn.ModuleList(layers[:enough]))
    text.num_hidden_layers = min(enough, len(layers))
    try:
        yield
    finally:
        setattr(owner, name, layers)
        text.num_hidden_layers = len(layers)
