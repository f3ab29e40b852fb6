"""Text → token ids with a boundary that is known by construction, never searched for.

An encoded example is one prompt and one or more *continuations* of it, laid out one after the other:

    input_ids   p p p p p | a1 a2 | b1          prompt, continuation a, continuation b
    positions   0 1 2 3 4 | 5  6  | 5           every continuation follows the prompt
    predicts            a1  a2 <end>   b1 <end>  from: 4 5 6   4 7

Tokens of a continuation see the prompt and their own past only, so both label words of SST-2 are scored in
one pass at the price of a few tokens; SQuAD has a single continuation, plain causal text. A continuation's
last token, the end of turn, is predicted but never fed in.

Target tokens are tokenized in the context of the prompt's tail and checked: their bytes, concatenated, are
the target's UTF-8 exactly. The byte spans that tie teacher and student together come from the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdsuite.config import TaskSettings
from kdsuite.errors import DataError
from kdsuite.runtime.garbage import garbage_kept
from kdsuite.tasks.example import Example, Message, Task
from kdsuite.tasks.vocabulary import vocabulary_bytes

PIECE = 1024  # prompts that are tokenized at once
PLAIN_TEMPLATE = (  # for base models that come without a chat template
    "{% for m in messages %}{{ m['role'] | capitalize }}:\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Encoded:
    """One example in one model's ids. All lists of supervised positions run over the continuations in order."""

    id: str
    input_ids: list[int]
    position_ids: list[int]
    segments: list[int]  # 0 for the prompt, 1, 2, … for the continuations
    sources: list[int]  # index into input_ids from which each supervised token is predicted
    targets: list[int]  # the supervised tokens
    choices: list[int]  # the continuation (from 0) each supervised token belongs to
    spans: list[tuple[int, int]]  # its bytes in the continuation's text; the end of turn is empty, at the end
    gold: int  # the continuation that is the target

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def gold_slice(self) -> slice:
        """Where the target's supervised tokens lie in the lists."""
        first = self.choices.index(self.gold)
        return slice(first, first + self.choices.count(self.gold))


class ChatTokenizer:
    """A model's tokenizer and chat template, with the byte view of its vocabulary."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_TEMPLATE
        probe = [{"role": "user", "content": "Q"}]
        self._tail = self._after_last_special(self.render(probe))
        self.end_id = self._end_of_turn(probe)
        self.pad_id = self.end_id  # a tokenizer's own pad token may lie beyond the model's embedding

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        return vocabulary_bytes(self.tokenizer)

    @cached_property
    def stops(self) -> frozenset[int]:
        """All ids that end an answer: the ends of a turn, and every special token."""
        return frozenset({self.end_id} | {i for i, spelled in enumerate(self.token_bytes) if spelled is None})

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text in this model's chat template, ready for the assistant's turn."""
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def prompt_ids(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        return self.tokenizer([self.render(p) for p in prompts], add_special_tokens=False)["input_ids"]

    def target_ids(self, target: str) -> list[int]:
        """Ids of a target as it continues a prompt, without end of turn. DataError if its bytes are not kept."""
        for anchor in (self._tail, ""):
            ids = self._ids(anchor + target)
            head = self._ids(anchor) if anchor else []
            rest = ids[len(head) :]
            if ids[: len(head)] == head and self.bytes_of(rest) == target.encode():
                return rest
        raise DataError(f"target {target!r} cannot be spelled by tokenizer {self.tokenizer.name_or_path!r}")

    def bytes_of(self, ids: Sequence[int]) -> bytes | None:
        """The bytes that ids spell; None if one of them is a special token."""
        parts = [self.token_bytes[i] for i in ids]
        return None if any(p is None for p in parts) else b"".join(parts)  # pyright: ignore[reportArgumentType]

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Byte span of each target token, and the empty span of the end of turn behind them."""
        spans, end = [], 0
        for i in ids:
            start, end = end, end + len(self.token_bytes[i] or b"")
            spans.append((start, end))
        return [*spans, (end, end)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character span of each token of a text."""
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _after_last_special(self, text: str) -> str:
        ends = [text.rfind(s) + len(s) for s in self.tokenizer.all_special_tokens if s in text]
        return text[max(ends, default=0) :]

    def _end_of_turn(self, probe: list[Message]) -> int:
        """The special token that the template puts after an assistant's turn; else the end of sequence."""
        whole = self.tokenizer.apply_chat_template(
            [*probe, {"role": "assistant", "content": "A"}], tokenize=False, add_generation_prompt=False
        )
        behind = whole[whole.rfind("A") + 1 :]
        ids = self.tokenizer(behind, add_special_tokens=False)["input_ids"]
        special = [i for i in ids if i in self.tokenizer.all_special_ids]
        end = special[0] if special else self.tokenizer.eos_token_id
        if end is None:
            raise DataError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no end-of-turn or end-of-sequence token"
            )
        return end


@garbage_kept()
def encode(
    task: Task, chat: ChatTokenizer, examples: Sequence[Example], settings: TaskSettings
) -> list[Encoded]:
    """Training form of examples: the prompt, cut around the answer if need be, and the target.

    Tasks with labels get every label as a continuation. Raises DataError, naming the example, when nothing is
    left to learn from.
    """
    label_ids = {label: chat.target_ids(label) for label in task.labels or ()}
    encoded = []
    for example, prompt in zip(examples, _prompts(task, chat, examples), strict=True):
        targets = label_ids or {example.target: _target_ids(chat, example)}
        room = settings.max_length - sum(len(ids) for ids in targets.values())
        if len(prompt) > room:
            prompt = _prompt_around_answer(task, chat, example, room)
        encoded.append(_lay_out(chat, example.id, prompt, targets, example.target))
    return encoded


def encode_prompts(
    task: Task, chat: ChatTokenizer, examples: Sequence[Example], settings: TaskSettings
) -> list[list[list[int]]]:
    """Generation form: per example the prompt's ids, or those of its sliding windows if it is too long."""
    room = settings.max_length - settings.max_new_tokens
    return [
        [prompt] if len(prompt) <= room else list(_windows(task, chat, example, room, settings.doc_stride))
        for example, prompt in zip(examples, _prompts(task, chat, examples), strict=True)
    ]


def _prompts(task: Task, chat: ChatTokenizer, examples: Sequence[Example]) -> Iterator[list[int]]:
    """In pieces: what the tokenizer notes of a text takes more memory than all that is kept of it."""
    for at in range(0, len(examples), PIECE):
        yield from chat.prompt_ids([task.messages(e) for e in examples[at : at + PIECE]])


def _target_ids(chat: ChatTokenizer, example: Example) -> list[int]:
    if not example.target.strip():
        raise DataError(f"example {example.id}: the target is empty; nothing to learn from")
    try:
        return chat.target_ids(example.target)
    except DataError as error:
        raise DataError(f"example {example.id}: {error}") from None


def _lay_out(
    chat: ChatTokenizer, id: str, prompt: list[int], targets: dict[str, list[int]], gold: str
) -> Encoded:
    input_ids, positions, segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    sources: list[int] = []
    supervised: list[int] = []
    choices: list[int] = []
    spans: list[tuple[int, int]] = []
    for choice, ids in enumerate(targets.values()):
        start = len(input_ids)
        sources += [len(prompt) - 1, *range(start, start + len(ids))]
        supervised += [*ids, chat.end_id]
        choices += [choice] * (len(ids) + 1)
        spans += chat.spans(ids)
        input_ids += ids
        positions += range(len(prompt), len(prompt) + len(ids))
        segments += [choice + 1] * len(ids)
    return Encoded(
        id, input_ids, positions, segments, sources, supervised, choices, spans, list(targets).index(gold)
    )


def _prompt_around_answer(task: Task, chat: ChatTokenizer, example: Example, room: int) -> list[int]:
    """The longest prompt within `room` whose context still holds the answer, roughly in its middle."""
    if "context" not in example.inputs or example.answer_start is None:
        raise DataError(
            f"example {example.id}: the prompt is longer than max_length allows; raise max_length"
        )
    answer = (example.answer_start, example.answer_start + len(example.target))
    offsets = chat.offsets(example.inputs["context"])
    inside = [i for i, (start, end) in enumerate(offsets) if start < answer[1] and end > answer[0]]
    if not inside:
        raise DataError(f"example {example.id}: the answer is at no token of its context; mend answer_start")
    first, last = inside[0], inside[-1] + 1

    def window(budget: int) -> tuple[int, int]:
        start = max(0, min(first - (budget - (last - first)) // 2, len(offsets) - budget))
        return start, min(start + budget, len(offsets))

    budget = _context_budget(task, chat, example, room)
    while budget >= last - first:
        start, end = window(budget)
        prompt = _prompt_with(task, chat, example, offsets, start, end)
        if len(prompt) <= room:
            return prompt
        budget -= max(1, len(prompt) - room)
    raise DataError(f"example {example.id}: question and answer alone exceed max_length; raise max_length")


def _windows(
    task: Task, chat: ChatTokenizer, example: Example, room: int, stride: int
) -> Iterator[list[int]]:
    """Prompts over overlapping pieces of the context that together cover it."""
    if "context" not in example.inputs:
        raise DataError(
            f"example {example.id}: the prompt is longer than max_length allows; raise max_length"
        )
    offsets = chat.offsets(example.inputs["context"])
    budget = _context_budget(task, chat, example, room)
    if budget <= 0:
        raise DataError(f"example {example.id}: the question alone exceeds max_length; raise max_length")
    start = 0
    while True:
        end = min(start + budget, len(offsets))
        prompt = _prompt_with(task, chat, example, offsets, start, end)
        while len(prompt) > room and end > start + 1:
            end -= len(prompt) - room
            prompt = _prompt_with(task, chat, example, offsets, start, end)
        yield prompt
        if end >= len(offsets):
            return
        start = max(start + 1, end - min(stride, (end - start) // 2))


def _context_budget(task: Task, chat: ChatTokenizer, example: Example, room: int) -> int:
    return room - len(chat.prompt_ids([task.messages(example, context="")])[0])


def _prompt_with(
    task: Task, chat: ChatTokenizer, example: Example, offsets: list[tuple[int, int]], start: int, end: int
) -> list[int]:
    text = example.inputs["context"][offsets[start][0] : offsets[end - 1][1]]
    return chat.prompt_ids([task.messages(example, context=text)])[0]
