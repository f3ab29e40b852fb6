"""Prompt, answer and ending are what the model's own template gives for the conversation, token for token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kdsuite.config import task_section
from kdsuite.errors import DataError, SettingsError
from kdsuite.extras.offline.corpora import pretraining_text
from kdsuite.extras.offline.tokenizers import byte_level_tokenizer
from kdsuite.methods.alignment import align, map_vocabulary
from kdsuite.tasks.encoding import ChatTokenizer, encode
from kdsuite.tasks.example import Example, canonical, task_of

from .template_families import CHATML, FAMILIES, GEMMA, KINDS, LLAMA2, LLAMA3, Family, dressed

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

JOINING = Family(
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
TEXTS = pretraining_text(300, seed=7)
WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=30)
TARGETS = WORDS.map(lambda text: canonical(text.strip())).filter(bool)
BLANKS = st.sampled_from(["", " ", "\n", "  ", "\n\n"])


@cache
def trained(kind: str) -> Any:
    return KINDS[kind](TEXTS)


@cache
def chat_of(family: str, kind: str) -> ChatTokenizer:
    chosen = FAMILIES[family]
    return ChatTokenizer(dressed(trained(kind), chosen), arguments=chosen.arguments)


def kinds_of(family: str) -> list[str]:
    """Llama 2 writes its beginning of sequence itself, which one of the tokenizers has not."""
    return [kind for kind in KINDS if (family, kind) != ("llama2", "bytes")]


def by_transformers(chat: ChatTokenizer, family: str, question: str, answer: str) -> list[int]:
    """The ids of a finished conversation up to and including the end of turn, from transformers alone."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tokenizer = chat.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, **FAMILIES[family].arguments)
    end = FAMILIES[family].end or tokenizer.eos_token
    if end not in text:  # the turn ends by a newline, so by the end of sequence
        return [*tokenizer(text.removesuffix("\n"), add_special_tokens=False)["input_ids"], chat.end_id]
    return tokenizer(text[: text.rindex(end)] + end, add_special_tokens=False)["input_ids"]


def conversation(chat: ChatTokenizer, question: str, answer: str) -> list[int]:
    """Prompt, answer and ending as the suite puts them together."""
    [prompt] = chat.prompt_ids([asked(question)])
    said = chat.answer(answer)
    return prompt[: len(prompt) - len(said.joined)] + said.ids


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def tokens(chat: ChatTokenizer, ids: list[int]) -> list[str]:
    return chat.tokenizer.convert_ids_to_tokens(ids)


def a_chat(kind: str, template: Any, **given: Any) -> ChatTokenizer:
    return ChatTokenizer(dressed(trained(kind), Family(template)), **given)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(question=WORDS, answer=TARGETS, before=BLANKS, behind=BLANKS)
def test_prompt_and_answer_are_the_templates_own_tokens(
    family: str, question: str, answer: str, before: str, behind: str
) -> None:
    for kind in kinds_of(family):
        chat, target = chat_of(family, kind), before + answer + behind
        added = chat.tokenizer.added_tokens_decoder.values()
        assume(not any(token.content in target for token in added))
        said = chat.answer(target)
        whole = conversation(chat, question, target)
        assert whole == by_transformers(chat, family, question, target), (kind, target)
        starts, ends = zip(*said.spans, strict=True)
        assert starts[1:] == ends[:-1] and (starts[0] == 0 or (said.joined and starts[0] < 0))
        assert ends[-1] == starts[-1] == len(target.encode())


@pytest.mark.parametrize("name", ["tinyllama", "qwen2.5"])
def test_the_real_tokenizers_under_every_template(name: str, real: Path) -> None:
    families = {n: f for n, f in FAMILIES.items() if n not in ("mistral-tokens", "phi3-rstrip", "none")}
    added = sorted({token for family in families.values() for token in family.special})
    tokenizer = AutoTokenizer.from_pretrained(str(real / "tokenizers" / name))
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.bos_token = tokenizer.bos_token or "<|endoftext|>"
    for family, chosen in families.items():
        tokenizer.chat_template = chosen.template
        chat = ChatTokenizer(tokenizer, arguments=chosen.arguments)
        for answer in (
            "positive",
            "Negative",
            "1066",
            "Ada Lovelace",
            "“São Paulo”",
            "日本",
            "(3.5 million)",
            "$5 billion",
        ):
            question = f"Who?\n\nIs it {answer} ?"
            whole = conversation(chat, question, answer)
            assert whole == by_transformers(chat, family, question, answer), (family, answer)
            said = chat.bytes_of(chat.answer(answer).target_ids) or b""
            assert said.endswith(chat.gap + answer.encode())
            assert (said == chat.gap + answer.encode()) or family == "mistral"


def test_real_templates_as_they_are(real_chats: dict[str, ChatTokenizer]) -> None:
    [prompt] = real_chats["tinyllama"].prompt_ids([asked("Hi")])
    assert real_chats["tinyllama"].decode(prompt).endswith("<|assistant|>\n")
    for chat in real_chats.values():
        text = chat.tokenizer.apply_chat_template(
            [*asked("Hi"), {"role": "assistant", "content": "Oslo"}], tokenize=False
        )
        ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = chat.prompt_ids([asked("Hi")])[0] + chat.answer("Oslo").ids
        assert whole == ids[: len(whole)] and whole[-1] == chat.end_id


def test_a_blank_behind_the_instruction_belongs_to_the_first_token() -> None:
    chat = chat_of("llama2", "prepend")
    [prompt] = chat.prompt_ids([asked("Good?")])
    said = chat.answer("positive")
    assert chat.decode(prompt).endswith("[INST] Good? [/INST]")
    assert tokens(chat, said.ids)[0].startswith("▁p")
    assert said.spans[0][0] == 0 and said.spans[0][1] == len(tokens(chat, said.ids)[0]) - 1
    assert tokens(chat, said.ids)[-2:] == ["▁", "</s>"]  # the template's blank before the end
    assert said.spans[-2:] == [(8, 8), (8, 8)]


def test_an_empty_think_block_belongs_to_the_prompt_and_an_open_one_does_not() -> None:
    assert chat_of("qwen3", "bytes").template.prompt(asked("Q")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert chat_of("r1", "bytes").template.prompt(asked("Q")).endswith("<｜User｜>Q<｜Assistant｜>")


def test_an_answer_that_the_template_would_alter_is_refused() -> None:
    with pytest.raises(DataError, match="does not write 'a</think>b'"):
        chat_of("r1", "bytes").answer("a</think>b")


def test_special_tokens_in_an_answer_stay_text_in_every_family() -> None:
    for family in FAMILIES:
        for kind in kinds_of(family):
            chat = chat_of(family, kind)
            for token in [t for t in chat.tokenizer.all_special_tokens if "▁" not in t]:
                said = chat.answer(f"a {token} b")
                assert chat.bytes_of(said.target_ids) == chat.gap + f"a {token} b".encode()


# --- the clock


@pytest.mark.usefixtures("tomorrow")
def test_prompts_do_not_depend_on_the_day() -> None:
    dated = LLAMA3 + "{# never rendered by the suite #}"
    tokenizer = dressed(trained("bytes-bos"), replace(FAMILIES["llama3"], template=dated))
    assert "24 Dec 2031" in tokenizer.apply_chat_template(asked("Hi"), tokenize=False)
    assert "Today Date: 26 Jul 2024" in chat_of("llama3", "bytes-bos").template.prompt(asked("Hi"))
    assert "Today Date: 26 Jul 2024" in ChatTokenizer(tokenizer).template.prompt(asked("Hi"))
    assert "Today Date: 1 Jan 2020" in chat_of("llama3-date", "bytes-bos").template.prompt(asked("Hi"))


# --- base models


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_model_reads_what_its_tokenizer_adds_once_also_when_it_is_loaded_again(
    kind: str, tmp_path: Path
) -> None:
    tokenizer = dressed(trained(kind), Family(None))
    own = tokenizer("User:\nHi\nAssistant:\n")["input_ids"]
    chat = ChatTokenizer(tokenizer)
    [prompt] = chat.prompt_ids([asked("Hi")])
    assert prompt == own[: len(prompt)] and len(own) - len(prompt) == (kind == "bytes-bos")  # its </s>
    assert prompt.count(chat.tokenizer.bos_token_id) == (kind != "bytes")
    chat.tokenizer.save_pretrained(tmp_path)
    again = ChatTokenizer(AutoTokenizer.from_pretrained(str(tmp_path)))
    assert again.prompt_ids([asked("Hi")]) == [prompt]
    assert again.tokenizer.apply_chat_template(
        asked("Hi"), add_generation_prompt=True, tokenize=True, return_dict=False
    ) == prompt  # fmt: skip


@pytest.mark.parametrize("family", ["llama2", "llama3", "gemma", "mistral", "r1"])
def test_a_template_that_writes_the_beginning_itself_gets_no_second(family: str) -> None:
    for kind in set(KINDS) - {"bytes"}:
        chat = chat_of(family, kind)
        [prompt] = chat.prompt_ids([asked("Hi")])
        assert prompt.count(chat.tokenizer.bos_token_id) == 1 and prompt[0] == chat.tokenizer.bos_token_id


# --- the end of a turn


def test_the_end_is_what_the_template_writes_also_where_it_is_only_an_added_token() -> None:
    chat = chat_of("gemma", "replace")
    end = chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end not in chat.tokenizer.all_special_ids
    assert chat.end_id == end and chat.end_ids == (end, chat.tokenizer.eos_token_id)


def test_a_turn_that_ends_by_text_alone_is_ended_by_the_end_of_sequence() -> None:
    for kind in KINDS:
        chat = chat_of("plain-text", kind)
        assert chat.answer("Oslo").ids[-1] == chat.end_id == chat.tokenizer.eos_token_id


def test_a_generated_answer_ends_at_the_first_end_or_special_token() -> None:
    tokenizer = dressed(trained("replace"), FAMILIES["gemma"])
    chat = ChatTokenizer(tokenizer, end_ids=[97])
    said, start = chat.answer("Oslo").target_ids, tokenizer.convert_tokens_to_ids("<start_of_turn>")
    assert chat.end_ids == (chat.end_id, tokenizer.eos_token_id, 97)
    for end in (*chat.end_ids, start, tokenizer.bos_token_id):
        assert chat.cut([*said, end, *said]) == said
    assert chat.cut(said) == said


# --- system messages, arguments, faults


def test_a_system_message_stands_before_the_question() -> None:
    for family in ("chatml", "qwen2", "qwen3", "r1", "llama2", "llama3", "phi3", "zephyr", "vicuna", "none"):
        chosen = FAMILIES[family]
        tokenizer = dressed(trained("prepend"), chosen)
        text = ChatTokenizer(tokenizer, system="Be brief.").template.prompt(asked("Where?"))
        assert 0 <= text.index("Be brief.") < text.index("Where?")
        assert "helpful" not in text


@pytest.mark.parametrize(
    ("template", "system", "said"),
    [
        (GEMMA, "Be brief.", r"refuses a system message \(System role not supported\); take `system` out"),
        ("{{ messages[-2].content }}:{{ messages[-1].content }}", "Be brief.", "does not write the system message"),
        ("{{ messages[0].content ", None, "cannot be rendered: .*mend the template"),
        ("{{ messages[0].text.strip() }}", None, "cannot be rendered: .*no attribute 'text'"),
        ("{{ messages[0].content + 1 }}", None, "cannot be rendered: .*mend the template"),
        ("{{ messages[0].content }}", None, "does not write question and answer once"),
        ({"tool_use": CHATML}, None, "cannot be rendered: .*no default"),
    ],
)
def test_what_a_template_cannot_do_is_one_line_when_it_is_loaded(template: Any, system: str | None, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        a_chat("prepend", template, system=system)
    assert "\n" not in str(caught.value) and "'tiny'" in str(caught.value)


def test_an_answer_that_the_tokenizer_joins_to_the_question_is_refused() -> None:
    texts = ["the filmA was fine"] * 50
    tokenizer = dressed(KINDS["bytes"](texts), Family("{% for m in messages %}{{ m.content }}{% endfor %}"))
    chat = ChatTokenizer(tokenizer)
    with pytest.raises(DataError, match="joins an answer to its prompt"):
        chat.prompt_ids([asked("the film")])


def test_an_answer_that_begins_in_the_templates_last_token_takes_it_over() -> None:
    """`]$` of real tokenizers; here learned on purpose. What else is scored beside it begins there as well."""
    chat = ChatTokenizer(dressed(byte_level_tokenizer(["[/INST]$ 5"] * 50, 400), JOINING))
    example = Example("r", {"sentence": "a fine film"}, "positive", ("positive",), "g")
    spelled = task_section("sst2", labels_text={"positive": "$$", "negative": "bad"})
    [encoded] = encode(task_of("sst2", spelled), chat, [example])
    [prompt] = chat.prompt_ids([TASKS["sst2"].messages(example)])
    kept = encoded.segments.count(0)
    assert tokens(chat, prompt)[kept:] == ["]"] and tokens(chat, chat.answer("$$").ids)[0] == "]$"
    for choice, text in enumerate(("bad", "$$")):
        where = [i for i, c in enumerate(encoded.choices) if c == choice]
        assert encoded.sources[where[0]] == kept - 1
        text = chat.template.prompt(TASKS["sst2"].messages(example)) + text + chat.tokenizer.eos_token
        whole = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert prompt[:kept] + [encoded.targets[i] for i in where] == whole
        assert [encoded.spans[i][0] for i in where[:2]] == [-1, 1 if choice else 0]


# --- labels


def test_labels_are_spelled_as_the_settings_say_and_named_as_ever() -> None:
    chat = chat_of("chatml", "bytes")
    example = Example("r", {"sentence": "a fine film"}, "positive", ("positive",), "g")
    spelled = task_section("sst2", labels_text={"positive": "Positive", "negative": "Bad"})
    [encoded] = encode(task_of("sst2", spelled), chat, [example])
    said = [
        chat.bytes_of([t for t, c in zip(encoded.targets, encoded.choices, strict=True) if c == choice][:-1])
        for choice in (0, 1)
    ]
    assert said == [b"Bad", b"Positive"] and encoded.gold == 1
    [plain] = encode(task_of("sst2", task_section("sst2")), chat, [example])
    assert chat.bytes_of(plain.targets[plain.gold_slice][:-1]) == b"positive"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"positiv": "Good"}, "unknown label 'positiv'; did you mean 'positive'"),
        ({"positive": "negative"}, "two labels have the same text 'negative'"),
        ({"positive": " Good"}, "label 'positive' needs a text without blanks"),
        ({"positive": ""}, "label 'positive' needs a text without blanks"),
    ],
)
def test_label_texts_that_cannot_be_are_refused(texts: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task_section("sst2", labels_text=texts)


# --- two templates


@settings(max_examples=40, deadline=None)
@given(answer=TARGETS)
def test_positions_of_two_templates_correspond_by_bytes_whatever_blanks_they_write(answer: str) -> None:
    pairs = [("llama2", "prepend"), ("chatml", "bytes"), ("llama2", "first"), ("mistral-tokens", "always")]
    for teacher, student in [(t, s) for t in pairs for s in pairs]:
        one, other = chat_of(*teacher), chat_of(*student)
        said, own = one.answer(answer), other.answer(answer)
        found = align(said.spans, own.spans)
        assert found[-1] == (len(own.ids) - 1, len(said.ids) - 1)  # the ends of turn
        assert all(own.spans[i][0] == said.spans[j][0] for i, j in found)
        assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
        if teacher == student:
            assert found == [(i, i) for i in range(len(own.ids))]
        else:
            assert min(own.spans[i][0] for i, _ in found) == 0


def test_first_tokens_correspond_by_their_bytes_behind_the_templates_blank() -> None:
    """`▁positive` of a Llama 2 is `positive` to a model whose template writes no blank, and the other way round."""
    blank, none = chat_of("llama2", "prepend"), chat_of("chatml", "bytes")
    for teacher, student in ((blank, none), (none, blank)):
        said, own = teacher.answer("positive"), student.answer("positive")
        pairs = align(said.spans, own.spans)
        mapped = map_vocabulary(teacher, student)
        everything = np.arange(len(teacher.token_bytes))
        ids = np.repeat(everything[None], len(pairs), 0)
        found = mapped(ids, pairs)
        assert pairs[0] == (0, 0)
        matched = [(teacher.token_bytes[t] or b"", student.token_bytes[s] or b"")
                   for t, s in zip(everything, found[0], strict=True) if s >= 0 and t != teacher.end_id]  # fmt: skip
        assert len(matched) > 20
        assert all(t[len(teacher.gap) :] == s[len(student.gap) :] and s for t, s in matched)
        assert all(t.startswith(teacher.gap) and s.startswith(student.gap) for t, s in matched)
        assert (found[1:] == mapped(ids[1:])).all()


def test_squad_targets_of_a_template_with_blanks_are_laid_out_with_all_of_its_ending() -> None:
    chat = a_chat("prepend", LLAMA2)
    context = "Ada Lovelace lived in London."
    example = Example("q", {"context": context, "question": "Where?"}, "London", ("London",), "g", 22)
    [encoded] = encode(task_of("squad", task_section("squad")), chat, [example])
    said = chat.answer("London")
    assert encoded.targets == said.ids and encoded.spans == said.spans
    assert encoded.input_ids[encoded.segments.count(0) :] == said.ids[:-1]
