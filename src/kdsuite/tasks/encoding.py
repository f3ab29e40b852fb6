"""Text → token ids with a boundary that is known by construction, never searched for.

An encoded example is one prompt and one or more *continuations* of it, laid out one after the other:

    input_ids   p p p p p | a1 a2 | b1          prompt, continuation a, continuation b
    positions   0 1 2 3 4 | 5  6  | 5           every continuation follows the prompt
    predicts            a1  a2 <end>   b1 <end>  from: 4 5 6   4 7

Tokens of a continuation see the prompt and their own past only, so both label words of SST-2 are scored in
one pass at the price of a few tokens; SQuAD has a single continuation, plain causal text. A continuation's
last token, the end of turn, is predicted but never fed in.

Prompt, target and ending are together, token for token, what the model's own chat template gives for the
conversation with that answer. Where the tokenizer joins the template's last blank to the answer (`▁positive`),
the prompt ends before the blank. Target tokens are checked: their bytes, concatenated, are that blank and the
target's UTF-8 exactly. The byte spans that tie teacher and student together come from the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, takewhile
from types import MappingProxyType
from typing import Any

from kdsuite.errors import DataError, SettingsError
from kdsuite.runtime.process import garbage_kept
from kdsuite.tasks.example import Example, Message, Task
from kdsuite.tasks.template import ChatTemplate, plain_template, without_blanks
from kdsuite.tasks.vocabulary import vocabulary_bytes

PIECE = 1024  # prompts that are tokenized at once
TOO_LONG = "the prompt is longer than max_length allows; raise max_length"
ALONE = "the question alone exceeds max_length; raise max_length"
PROBE = "A"  # an answer that tokenizers neither split nor join to a newline


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
    def prompt(self) -> list[int]:
        return self.input_ids[: self.segments.count(0)]

    @property
    def gold_slice(self) -> slice:
        """Where the target's supervised tokens lie in the lists."""
        first = self.choices.index(self.gold)
        return slice(first, first + self.choices.count(self.gold))


@dataclass(frozen=True)
class Answer:
    """A target as it continues a prompt, with what ends the turn. All of it is supervised."""

    ids: list[int]
    spans: list[tuple[int, int]]  # bytes of the target; empty for a template's blanks and for the end of turn
    joined: list[int]  # the prompt's last tokens where its first begins in them: `]`, if the tokenizer writes `]$`

    @property
    def target_ids(self) -> list[int]:
        """Without what ends the turn."""
        size = self.spans[-1][1]
        return [id for id, (start, _) in zip(self.ids, self.spans, strict=True) if start < size]


class ChatTokenizer:
    """A model's tokenizer and chat template, with the byte view of its vocabulary.

    `end_id` is what ends a turn, `end_ids` are all at which a generated answer ends: that one, the tokenizer's
    end of sequence and those given (of the model's configuration files). `gap` are the bytes that the tokenizer
    reads between prompt and answer, `ending_ids` what follows an answer. SettingsError for a tokenizer or a
    template that cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        arguments: Mapping[str, Any] = MappingProxyType({}),
        end_ids: Sequence[int] = (),
    ):
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            tokenizer.chat_template = plain_template(tokenizer)
        self.template = ChatTemplate(tokenizer, system, arguments)
        added = tokenizer.added_tokens_decoder  # some of them are no special ones, but answers are to end at them
        self._special = {t.content: id for id, t in added.items() if t.special or id in end_ids}
        self._special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self._ending, end = self._end_of_turn()
        self.end_id: int = end
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys([end, *eos, *end_ids]))
        self.pad_id = end  # a tokenizer's own pad token may lie beyond the model's embedding
        self.asked: dict[tuple[int, ...], list[Message]] | None = None  # prompts, for who takes messages, by their ids
        self._measure()

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        return vocabulary_bytes(self.tokenizer)

    @cached_property
    def final_ids(self) -> frozenset[int]:
        """Tokens that no answer goes beyond: the ends and all special tokens."""
        return frozenset([*self.end_ids, *self._special.values()])

    @property
    def ending(self) -> str:
        """What ends an answer, as text: what the template writes up to the end of turn."""
        return self._ending or self.tokenizer.convert_ids_to_tokens(self.end_id)

    def cut(self, ids: Sequence[int]) -> list[int]:
        """Generated tokens up to the first that ends an answer."""
        return list(takewhile(lambda id: id not in self.final_ids, ids))

    def prompt_ids(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Ids of prompts as they are when an answer follows. DataError if an answer would reach into one."""
        texts = [self.template.prompt(prompt) + PROBE for prompt in prompts]
        found = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        if any(ids[-len(self._probe) :] != self._probe for ids in found):
            raise DataError(
                f"tokenizer {self.tokenizer.name_or_path!r} joins an answer to its prompt; "
                "give a chat template that ends prompts with a newline or a special token"
            )
        made = [ids[: -len(self._probe)] for ids in found]
        if self.asked is not None:
            self.asked |= {tuple(ids): self.template.turns(prompt) for ids, prompt in zip(made, prompts, strict=True)}
        return made

    def answer(self, target: str) -> Answer:
        """A target's tokens and those of the ending. DataError if its bytes are not kept.

        Spans are clipped to the target, as blanks that only one model reads do not count; but a token that begins in
        the prompt begins before 0, where no other model has a boundary.
        """
        written = self.template.written(target)
        ids, kept, joined = self._in_context(written) or (self._by_itself(written), written, [])
        at = without_blanks(target, kept)
        if at is None:
            raise self._cannot_spell(target)
        first, size = len(target[:at].encode()), len(target.encode())
        last, start = first + len(kept.encode()), first - len(self.gap)

        def place(at: int) -> int:
            return min(at - start, 0) if at <= first else size if at >= last else at

        lengths = (len(self.token_bytes[id] or b"") for id in ids)
        ends = accumulate(lengths, initial=start - len(self.bytes_of(joined) or b""))
        return Answer(ids, [(place(begin), place(end)) for begin, end in pairwise(ends)], joined)

    def bytes_of(self, ids: Sequence[int]) -> bytes | None:
        """The bytes that ids spell; None if one of them is a special token."""
        parts = [self.token_bytes[i] for i in ids]
        return None if any(p is None for p in parts) else b"".join(parts)  # pyright: ignore[reportArgumentType]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _ids(self, text: str, **options: Any) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def _cannot_spell(self, target: str) -> DataError:
        return DataError(f"target {target!r} cannot be spelled by tokenizer {self.tokenizer.name_or_path!r}")

    def _end_of_turn(self) -> tuple[str, int]:
        """What the template writes behind an answer up to its first special token, and that token.

        Where it writes none, the end of sequence ends the turn, at once.
        """
        after = self.template.after
        found = [(after.find(token), -len(token), token) for token in self._special if token in after]
        if found:
            at, _, token = min(found)
            return after[: at + len(token)], self._special[token]
        if self.tokenizer.eos_token_id is None:
            raise SettingsError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no end-of-turn or end-of-sequence token"
            )
        return "", self.tokenizer.eos_token_id

    def _measure(self) -> None:
        """Find on the probe which tokens belong to the prompt, which to an answer and which end it.

        The prompt ends before the blanks that the template writes last: many tokenizers join them to the answer.
        """
        before = self.template.before
        starts = [before.rfind(token) for token in self._special if token in before]
        self._context = before[max(starts, default=0) :]  # tokens behind a special one depend on no others
        ids = self._ids(self._context + PROBE)
        width, said = 0, b""
        wanted = len(before) - len(before.rstrip(" ")) + len(PROBE)
        while len(said) < wanted and width < len(ids):
            token = self.token_bytes[ids[-1 - width]]
            if token is None:
                break
            width, said = width + 1, token + said
        if not said.endswith(PROBE.encode()):
            raise SettingsError(f"tokenizer {self.tokenizer.name_or_path!r} does not keep a text's bytes")
        self._head, self._probe, self.gap = ids[:-width], ids[-width:], said[: -len(PROBE)]
        rest = self._ids(self._context + PROBE + self._ending)[len(self._head) :]
        body = rest[:-1] if self._ending else rest
        self._closing = (self.bytes_of(body) or b"")[len(said) :]  # what is written between answer and end
        kept = len(self.gap) + len(PROBE)
        at = [sum(len(self.token_bytes[i] or b"") for i in body[:n]) for n in range(len(body))]
        self.ending_ids = [*(id for id, start in zip(body, at, strict=True) if start >= kept), self.end_id]

    def _in_context(self, written: str) -> tuple[list[int], str, list[int]] | None:
        """The answer's ids as they are in the conversation, the text they spell, and what the prompt loses.

        None where the answer holds the text of special tokens, or its bytes are not kept.
        """
        ids = self._ids(self._context + written + self._ending)
        ids = ids if self._ending else [*ids, self.end_id]
        pairs = zip(ids, self._head, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(self._head))
        joined, said = self.bytes_of(self._head[same:]), self.bytes_of(ids[same:-1])
        if joined is None or said is None or ids[-1] != self.end_id:
            return None
        if self.final_ids.intersection(ids[same:-1]):
            return None
        if not (said.startswith(joined + self.gap) and said.endswith(self._closing)):
            return None
        kept = said[len(joined + self.gap) : len(said) - len(self._closing)].decode(errors="replace")
        if without_blanks(written, kept) is None:
            return None
        return ids[same:], kept, self._head[same:]

    def _by_itself(self, written: str) -> list[int]:
        """The answer's ids with special tokens in it as text, and a boundary before and behind it."""
        text = self.gap.decode() + written
        for anchor in ("", "\n"):
            head = self._ids(anchor, split_special_tokens=True) if anchor else []
            ids = self._ids(anchor + text, split_special_tokens=True)
            if ids[: len(head)] == head and self.bytes_of(ids[len(head) :]) == text.encode():
                return [*ids[len(head) :], *self.ending_ids]
        raise self._cannot_spell(written)


@garbage_kept()
def encode(task: Task, chat: ChatTokenizer, examples: Sequence[Example]) -> list[Encoded]:
    """Training form of examples: the prompt, cut around the answer if need be, and the target.

    Tasks with labels get every label as a continuation. Raises DataError, naming the example, when nothing is
    left to learn from, or a label cannot be spelled.
    """
    settings, labels = task.settings, label_answers(task, chat)
    encoded = []
    for example, prompt in zip(examples, _prompts(task, chat, examples), strict=True):
        if not labels and not example.target.strip():
            raise DataError(f"example {example.id}: the target is empty; nothing to learn from")
        try:
            answers = labels or {example.target: chat.answer(example.target)}
        except DataError as error:
            raise DataError(f"example {example.id}: {error}") from None
        room = room_beside(answers, settings.max_length)
        if room <= 0:
            raise DataError(
                f"example {example.id}: the target alone takes {settings.max_length - room + 1} tokens of the "
                f"{settings.max_length} of max_length; raise it"
            )
        if len(prompt) > room:
            prompt = _Long(task, chat, example, room).around_answer()
        encoded.append(lay_out(example.id, prompt, answers, example.target))
    return encoded


def room_beside(answers: Mapping[str, Answer], max_length: int) -> int:
    """The tokens that a prompt may have with these side by side behind it, the last of each of which is not fed in."""
    fed = sum(len(answer.ids) - 1 for answer in answers.values())
    return max_length - fed - max(len(answer.joined) for answer in answers.values()) * (len(answers) - 1)


def encode_said(task: Task, chat: ChatTokenizer, examples: Sequence[Example]) -> list[Encoded]:
    """As `encode`, of examples whose targets a teacher said, without what cannot be spelled or cut to max_length."""
    try:
        return encode(task, chat, examples)
    except DataError:
        return [e for example in examples for e in encode_said(task, chat, [example])] if len(examples) > 1 else []


def explained_prompts(task: Task, chat: ChatTokenizer, examples: Sequence[Example], new_tokens: int) -> list[list[int]]:
    """Prompts of an explaining task, cut around the answer where they leave less than `new_tokens` of max_length.

    DataError, naming the example, for one that cannot be cut.
    """
    room = task.settings.max_length - new_tokens
    return [
        prompt if len(prompt) <= room else _Long(task, chat, example, room).around_answer()
        for example, prompt in zip(examples, _prompts(task, chat, examples), strict=True)
    ]


@garbage_kept()
def encode_rationales(
    task: Task, chat: ChatTokenizer, examples: Sequence[Example], said: Mapping[str, tuple[str, bool]], new_tokens: int
) -> list[Encoded]:
    """Training form of the reasons that were given for examples, by id, each with whether it is whole.

    The end of turn is learned behind a whole one only; max_length cuts what another tokenizer makes longer. Examples
    without a reason, and those whose reason the tokenizer or the template does not keep, are left out.
    """
    examples, encoded = [example for example in examples if example.id in said], []
    for example, prompt in zip(examples, explained_prompts(task, chat, examples, new_tokens), strict=True):
        text, whole = said[example.id]
        room = task.settings.max_length - len(prompt) + 1  # the last token is not fed in
        try:
            answer = chat.answer(text)
            if not whole or len(answer.ids) > room:
                count = min(len(answer.target_ids), room)
                answer = Answer(answer.ids[:count], answer.spans[:count], answer.joined)
            encoded.append(lay_out(example.id, prompt, {text: answer}, text))
        except DataError:
            continue
    return encoded


def label_answers(task: Task, chat: ChatTokenizer) -> dict[str, Answer]:
    """Each label of a task as it continues a prompt. DataError where the tokenizer reads one as another text."""
    answers = {}
    for label, text in (task.labels or {}).items():
        try:
            answers[label] = chat.answer(text)
        except DataError as error:
            raise DataError(f"task {task.name}: label {label!r}: {error}; spell it otherwise (labels_text)") from None
    return answers


def encode_prompts(task: Task, chat: ChatTokenizer, examples: Sequence[Example]) -> list[list[list[int]]]:
    """Generation form: per example the prompt's ids, or those of its sliding windows if it is too long."""
    settings = task.settings
    room = settings.max_length - settings.max_new_tokens
    return [
        [prompt] if len(prompt) <= room else list(_Long(task, chat, example, room).windows(settings.doc_stride))
        for example, prompt in zip(examples, _prompts(task, chat, examples), strict=True)
    ]


def _prompts(task: Task, chat: ChatTokenizer, examples: Sequence[Example]) -> Iterator[list[int]]:
    """In pieces: what the tokenizer notes of a text takes more memory than all that is kept of it."""
    for at in range(0, len(examples), PIECE):
        yield from chat.prompt_ids([task.messages(e) for e in examples[at : at + PIECE]])


def lay_out(id: str, prompt: list[int], answers: dict[str, Answer], gold: str) -> Encoded:
    """A prompt with the answers, by name, that may follow it; `gold` names the target."""
    joined = max((answer.joined for answer in answers.values()), key=len)
    kept = len(prompt) - len(joined)
    if prompt[kept:] != joined:
        raise DataError(f"example {id}: the tokenizer joins the answer to the question; mend the chat template")
    prompt = prompt[:kept]
    input_ids, positions, segments = list(prompt), list(range(kept)), [0] * kept
    sources: list[int] = []
    supervised: list[int] = []
    choices: list[int] = []
    spans: list[tuple[int, int]] = []
    for choice, answer in enumerate(answers.values()):
        own = joined[: len(joined) - len(answer.joined)]  # of the prompt, where another answer begins in it
        start, ids = len(input_ids), [*own, *answer.ids]
        sources += [kept - 1, *range(start, start + len(ids) - 1)]
        supervised += ids
        choices += [choice] * len(ids)
        spans += [*((at, at) for at in range(-len(own), 0)), *answer.spans]
        input_ids += ids[:-1]
        positions += range(kept, kept + len(ids) - 1)
        segments += [choice + 1] * (len(ids) - 1)
    gold_choice = list(answers).index(gold)
    return Encoded(id, input_ids, positions, segments, sources, supervised, choices, spans, gold_choice)


class _Long:
    """A prompt that is longer than `room`, over pieces of its context. DataError, with the example, if it has none."""

    def __init__(self, task: Task, chat: ChatTokenizer, example: Example, room: int):
        self.example, self.room = example, room
        if "context" not in example.inputs:
            raise self._error(TOO_LONG)
        self._context = example.inputs["context"]
        found = chat.tokenizer(self._context, add_special_tokens=False, return_offsets_mapping=True)
        self._offsets = found["offset_mapping"]  # of each token its first character and the one behind
        self._ids = lambda text: chat.prompt_ids([task.messages(example, context=text)])[0]
        self._budget = room - len(self._ids(""))  # tokens of the context at most: a prompt may say more with one

    def around_answer(self) -> list[int]:
        """The longest prompt whose context still holds the answer, roughly in its middle."""
        start = self.example.answer_start
        if start is None:
            raise self._error(TOO_LONG)
        stop = start + len(self.example.target)
        inside = [i for i, (a, b) in enumerate(self._offsets) if a < stop and b > start]
        if not inside:
            raise self._error("the answer is at no token of its context; mend answer_start")
        needed, budget = inside[-1] + 1 - inside[0], self._budget
        while budget >= needed:
            first = max(0, min(inside[0] - (budget - needed) // 2, len(self._offsets) - budget))
            prompt = self._over(first, min(first + budget, len(self._offsets)))
            if len(prompt) <= self.room:
                return prompt
            budget -= max(1, len(prompt) - self.room)
        raise self._error("question and answer alone exceed max_length; raise max_length")

    def windows(self, stride: int) -> Iterator[list[int]]:
        """Prompts over overlapping pieces of the context that together cover it. DataError where one fits with none."""
        if self._budget <= 0:
            raise self._error(ALONE)
        start = end = 0
        while end < len(self._offsets) or not end:
            end = min(start + self._budget, len(self._offsets))
            while len(prompt := self._over(start, end)) > self.room and end > start + 1:
                end = max(start + 1, end - (len(prompt) - self.room))
            if len(prompt) > self.room:
                raise self._error(ALONE)
            yield prompt
            start = max(start + 1, end - min(stride, (end - start) // 2))

    def _over(self, start: int, end: int) -> list[int]:
        return self._ids(self._context[self._offsets[start][0] : self._offsets[end - 1][1]])

    def _error(self, problem: str) -> DataError:
        return DataError(f"example {self.example.id}: {problem}")
