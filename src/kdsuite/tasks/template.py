"""What a chat template writes around an answer, as text; found by a probe, not by knowing templates by name.

The probe is a conversation with an answer that occurs nowhere else. What the template writes before it is the
prompt, be it an empty think block or a blank; what it writes behind it ends the turn. What a template adds only
when it asks for an answer (R1's open think block) is no part of a finished conversation, so it is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

from kdsuite.errors import DataError, SettingsError, first_line
from kdsuite.tasks.example import FAULTS, Message

CLOCK = datetime(2024, 7, 26)  # what templates take for now: Llama 3's own default, "26 Jul 2024"
QUESTION, ANSWER = "QUESTION-OF-THE-PROBE", "ANSWER-OF-THE-PROBE"
PLAIN_TEMPLATE = (  # for base models that come without a chat template
    "{% for m in messages %}{{ m['role'] | capitalize }}:\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


class ChatTemplate:
    """A tokenizer's chat template with a system message and arguments, under a clock that stands still.

    SettingsError where it refuses or drops the system message, or cannot be rendered at all.
    """

    def __init__(self, tokenizer: Any, system: str | None, arguments: Mapping[str, Any]):
        self._tokenizer, self._arguments = tokenizer, dict(arguments)
        self._system = system
        self.before, self.after = self._probe(system)

    def conversation(self, messages: Sequence[Message], answer: str) -> str:
        """The text of a conversation that this answer ends. DataError if the template raises."""
        said = [message["content"] for message in messages if message["role"] == "system"]  # by the task
        try:
            text = self._render([*self.turns(messages), {"role": "assistant", "content": answer}])
        except FAULTS as error:
            advice = "; if it is for the system message, take that out of the task" if said else ""
            raise DataError(
                f"the chat template of {self._name} cannot be rendered: {first_line(error)}{advice}"
            ) from None
        if said and said[0].strip() not in text:
            raise DataError(
                f"the chat template of {self._name} does not write the system message of the task; take it out there"
            )
        return text

    def turns(self, messages: Sequence[Message]) -> list[Message]:
        """A task's messages as they are rendered: behind the system messages of the model and the task, as one."""
        said = [message["content"] for message in messages if message["role"] == "system"]
        turns = [message for message in messages if message["role"] != "system"]
        return [*_system([*([] if self._system is None else [self._system]), *said]), *turns]

    def prompt(self, messages: Sequence[Message]) -> str:
        """All that the template writes before the answer."""
        before, _, after = self.conversation(messages, ANSWER).rpartition(ANSWER)
        if after != self.after:
            raise DataError(f"the chat template of {self._name} ends a turn now this way, now that")
        return before

    def written(self, answer: str) -> str:
        """What the template writes of an answer: some strip its blanks. DataError if it alters more."""
        text = self.conversation(_PROBE, answer)
        if text.startswith(self.before) and text.endswith(self.after):
            written = text[len(self.before) : len(text) - len(self.after)]
            if without_blanks(answer, written) is not None:
                return written
        raise DataError(f"the chat template of {self._name} does not write {answer!r} as it is")

    @property
    def _name(self) -> str:
        return repr(self._tokenizer.name_or_path)

    def _render(self, messages: Sequence[Message]) -> str:
        text = self._tokenizer.get_chat_template()
        _compile_jinja_template(text).environment.globals["strftime_now"] = CLOCK.strftime
        return self._tokenizer.apply_chat_template(
            list(messages), chat_template=text, tokenize=False, **self._arguments
        )

    def _probe(self, system: str | None) -> tuple[str, str]:
        turns: list[Message] = [*_PROBE, {"role": "assistant", "content": ANSWER}]
        unusable = "take `system` out of this model's settings"
        try:
            plain = self._render(turns)
        except FAULTS as error:
            raise self._refused(
                f"cannot be rendered: {first_line(error)}", "mend the template or its chat_template_kwargs"
            ) from None
        try:
            text = self._render([*_system([] if system is None else [system]), *turns])
        except FAULTS as error:
            raise self._refused(f"refuses a system message ({first_line(error)})", unusable) from None
        if system and (system.strip() not in text or text == plain):
            raise self._refused("does not write the system message", unusable)
        before, _, after = text.partition(ANSWER)
        if QUESTION not in before or ANSWER not in text or ANSWER in after:
            raise self._refused("does not write question and answer once, in this order", "mend the template")
        return before, after

    def _refused(self, why: str, advice: str) -> SettingsError:
        return SettingsError(f"the chat template of {self._name} {why}; {advice}")


def _system(said: Sequence[str]) -> list[Message]:
    """The model's and the task's own system message, as one: templates know no second."""
    return [{"role": "system", "content": "\n\n".join(said)}] if said else []


_PROBE: list[Message] = [{"role": "user", "content": QUESTION}]


def plain_template(tokenizer: Any) -> str:
    """The template of a base model that has none, begun by what its tokenizer puts before every text (`<s>`)."""
    said = tokenizer("User:", return_special_tokens_mask=True)
    count = (said["special_tokens_mask"] + [0]).index(0)
    added: list[int] = said["input_ids"][:count]
    own = tokenizer("User:", add_special_tokens=False)["input_ids"]
    start = "".join(tokenizer.convert_ids_to_tokens(added))
    for blank in ("", " "):  # some tokenizers put a blank before a text's first word, though not behind `<s>`
        if tokenizer(f"{start}{blank}User:", add_special_tokens=False)["input_ids"] == [*added, *own]:
            break
    else:
        raise SettingsError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template and does not read what it puts before a "
            f"text ({start!r}) when it is written out; give it a chat template"
        )
    return f"{{{{ {json.dumps(start + blank)} }}}}{PLAIN_TEMPLATE}" if start else PLAIN_TEMPLATE


def without_blanks(text: str, written: str) -> int | None:
    """Where `written`, a text short of some blanks around it, begins in it; None if it is another text."""
    if written.strip() != text.strip():
        return None
    at = (len(text) - len(text.lstrip())) - (len(written) - len(written.lstrip()))
    return at if at >= 0 and text[at : at + len(written)] == written else None
