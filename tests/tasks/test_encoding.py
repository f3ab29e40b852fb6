"""The boundary between prompt and target is known, and the supervised tokens are the target, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdsuite.config import task_section
from kdsuite.errors import DataError
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode, encode_prompts, encode_rationales, explained_prompts
from kdsuite.tasks.example import Example, canonical, task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

SST2, SQUAD = TASKS["sst2"], TASKS["squad"]
# ▁ is how SentencePiece writes a blank, so it has no spelling of its own there
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), min_size=1, max_size=40).map(
    lambda t: canonical(t.strip())
)


@pytest.fixture(params=["qwen_chat", "llama_chat"])
def chat(request: pytest.FixtureRequest) -> ChatTokenizer:
    return request.getfixturevalue(request.param)


def supervised(chat: ChatTokenizer, encoded: Encoded) -> tuple[bytes | None, int]:
    """Bytes of the supervised target tokens, and the id that ends them."""
    ids = encoded.targets[encoded.gold_slice]
    return chat.bytes_of(ids[:-1]), ids[-1]


def review(sentence: str, label: str = "positive") -> Example:
    return Example("r", {"sentence": sentence}, label, (label,), sentence)


def question(context: str, answer: str, asked: str = "What?") -> Example:
    start = context.index(answer)
    return Example("q", {"context": context, "question": asked}, answer, (answer,), "g", start)


def test_a_target_that_occurs_earlier_in_the_prompt_is_not_taken_for_the_target(chat: ChatTokenizer) -> None:
    [encoded] = encode(
        task_of("sst2", task_section("sst2")), chat, [review("a positive film , positive , not negative")]
    )
    assert supervised(chat, encoded) == (b"positive", chat.end_id)
    first = encoded.sources[encoded.gold_slice][0]
    assert first == encoded.segments.count(0) - 1  # predicted from the last token of the prompt


def test_every_label_is_a_continuation_of_the_same_prompt(chat: ChatTokenizer) -> None:
    [encoded] = encode(task_of("sst2", task_section("sst2")), chat, [review("dull", "negative")])
    prompt = encoded.segments.count(0)
    assert encoded.gold == 0
    for choice, label in enumerate(("negative", "positive")):
        where = [i for i, c in enumerate(encoded.choices) if c == choice]
        assert chat.bytes_of([encoded.targets[i] for i in where[:-1]]) == label.encode()
        assert encoded.sources[where[0]] == prompt - 1
        fed = [i for i, s in enumerate(encoded.segments) if s == choice + 1]
        assert [encoded.position_ids[i] for i in fed] == list(range(prompt, prompt + len(fed)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=TEXT.filter(bool))
def test_any_unicode_target_is_spelled_byte_for_byte_with_spans_without_gaps(chat: ChatTokenizer, answer: str) -> None:
    example = question(f"It is {answer} .", answer)
    [encoded] = encode(task_of("squad", task_section("squad", max_length=2000)), chat, [example])
    assert supervised(chat, encoded) == (answer.encode(), chat.end_id)
    starts, ends = zip(*encoded.spans, strict=True)
    assert starts == (0, *ends[:-1]) and ends[-1] == len(answer.encode())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=TEXT.filter(bool))
def test_the_real_tokenizers_spell_any_target_too(real_chats: dict[str, ChatTokenizer], answer: str) -> None:
    for chat in real_chats.values():
        [encoded] = encode(
            task_of("squad", task_section("squad", max_length=2000)), chat, [question(f"It is {answer} .", answer)]
        )
        assert supervised(chat, encoded) == (answer.encode(), chat.end_id)


def test_label_words_of_one_and_of_several_tokens_in_the_real_tokenizers(real_chats: dict[str, ChatTokenizer]) -> None:
    tiny, qwen = real_chats["tinyllama"], real_chats["qwen2.5"]
    assert [len(tiny.answer(label).target_ids) for label in ("negative", "positive")] == [1, 2]
    assert qwen.answer("negative").target_ids == [42224] and qwen.answer("positive").target_ids == [30487]
    assert tiny.end_id == tiny.tokenizer.eos_token_id
    assert qwen.tokenizer.convert_ids_to_tokens(qwen.end_id) == "<|im_end|>"


@pytest.mark.parametrize("before", [0, 40, 400])
def test_an_over_long_context_is_cut_around_the_answer(chat: ChatTokenizer, before: int) -> None:
    context = "some words here . " * before + "the answer is Zanzibar . " + "more words there . " * 300
    limit = task_section("squad", max_length=200)
    [encoded] = encode(task_of("squad", limit), chat, [question(context, "Zanzibar")])
    assert len(encoded) <= 200
    assert supervised(chat, encoded) == (b"Zanzibar", chat.end_id)
    prompt = chat.decode(encoded.input_ids[: encoded.segments.count(0)])
    assert "Zanzibar" in prompt and "What?" in prompt


def test_evaluation_windows_cover_the_whole_context_and_overlap(chat: ChatTokenizer) -> None:
    words = [f"w{i}" for i in range(300)]
    limit = task_section("squad", max_length=300, max_new_tokens=8, doc_stride=20)
    [windows] = encode_prompts(task_of("squad", limit), chat, [question(" ".join(words), "w7")])
    texts = [chat.decode(w) for w in windows]
    assert len(windows) > 1 and all(len(w) <= 300 - 8 for w in windows)
    assert set(words) <= {word for text in texts for word in text.split()}
    assert all("What?" in t for t in texts)


CONTEXTS = {
    "words": " ".join(f"word{i}" for i in range(30)),
    "signs": "東京は、日本の首都。" * 4,
    "bytes": "é 𝔘🙂 " * 9,
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_room_that_is_hardly_more_than_the_questions_is_kept_to_or_refused(chat: ChatTokenizer, context: str) -> None:
    """The usual prompt has words that stand there with a context only, and some signs take several tokens."""
    check_rooms(chat, context)


def test_such_rooms_are_kept_to_with_the_real_tokenizers(real_chats: dict[str, ChatTokenizer]) -> None:
    for chat in real_chats.values():
        for context in CONTEXTS.values():
            check_rooms(chat, context)


def check_rooms(chat: ChatTokenizer, context: str) -> None:
    """Every room from the question's tokens on: refused up to some room, then windows that all fit and cover it all."""
    example = Example("q", {"context": context, "question": "What?"}, "x", ("x",), "g")

    def task(max_length: int):
        section = {"kind": "short_answer", "source": "r.jsonl", "max_length": max_length, "max_new_tokens": 4}
        return task_of("mine", task_section("mine", section))

    asked, one = (len(chat.prompt_ids([task(99).messages(example, text)])[0]) for text in ("", context[0]))
    assert one > asked + 5
    fits, told = [], set()
    for room in range(asked + 1, one + 8):
        try:
            [windows] = encode_prompts(task(room + 4), chat, [example])
        except DataError as error:
            told.add(str(error))
            fits.append(False)
        else:
            assert all(len(window) <= room for window in windows)
            assert set(context) <= set("".join(map(chat.decode, windows)))
            fits.append(True)
    assert told == {"example q: the question alone exceeds max_length; raise max_length"}
    assert fits == sorted(fits) and fits[-1] and not any(fits[: one - asked - 1])


def test_a_question_that_alone_exceeds_the_length_is_refused_by_name(chat: ChatTokenizer) -> None:
    example = question("short answer here", "answer", asked="why " * 500)
    with pytest.raises(DataError, match="example q: .*max_length"):
        encode(task_of("squad", task_section("squad", max_length=100)), chat, [example])


def test_a_sentence_that_is_too_long_is_refused_rather_than_cut(chat: ChatTokenizer) -> None:
    with pytest.raises(DataError, match="example r: .*max_length"):
        encode(task_of("sst2", task_section("sst2", max_length=64)), chat, [review("long " * 500)])


def test_an_empty_target_is_refused(chat: ChatTokenizer) -> None:
    example = Example("q", {"context": "c", "question": "?"}, " ", (" ",), "g", 0)
    with pytest.raises(DataError, match="nothing to learn"):
        encode(task_of("squad", task_section("squad")), chat, [example])


def test_special_tokens_inside_a_target_stay_text(chat: ChatTokenizer) -> None:
    answer = f"a {chat.tokenizer.eos_token} b"
    assert chat.bytes_of(chat.answer(answer).target_ids) == answer.encode()


def test_a_target_that_a_tokenizer_cannot_spell_is_refused_with_its_example(llama_chat: ChatTokenizer) -> None:
    with pytest.raises(DataError, match="example q: target 'a▁b' cannot be spelled"):
        encode(task_of("squad", task_section("squad")), llama_chat, [question("It is a▁b.", "a▁b")])


def test_a_whole_reason_ends_its_turn_and_one_that_was_cut_does_not(chat: ChatTokenizer) -> None:
    task = task_of("squad", task_section("squad")).explaining("Why?")
    example = question("Ada lived in London .", "London")
    whole, cut = (encode_rationales(task, chat, [example], {"q": ("It says so.", end)}, 20)[0] for end in (True, False))
    assert supervised(chat, whole) == (b"It says so.", chat.end_id)
    assert chat.bytes_of(cut.targets) == b"It says so." and chat.end_id not in cut.targets
    assert cut.prompt == whole.prompt == explained_prompts(task, chat, [example], 20)[0]
    assert cut.input_ids == [*cut.prompt, *cut.targets[:-1]] and cut.sources[0] == len(cut.prompt) - 1
    plain = encode(task_of("squad", task_section("squad")), chat, [example])[0]
    assert chat.decode(whole.prompt) == chat.decode(plain.prompt).replace("context.", "context.\n\nWhy?")


def test_what_another_tokenizer_makes_longer_than_max_length_is_cut_and_ends_no_turn(chat: ChatTokenizer) -> None:
    """The prompt leaves room for the teacher's tokens; a context is cut around the answer for it."""
    task = task_of("squad", task_section("squad", max_length=120)).explaining("Why?")
    example = question("word " * 300 + "London" + " word" * 300, "London")
    reason = "because the text says so " * 20
    [encoded] = encode_rationales(task, chat, [example], {"q": (reason, True)}, 12)
    assert len(encoded) == 120 and 100 <= len(encoded.prompt) <= 108
    assert "London" in chat.decode(encoded.prompt) and "Why?" in chat.decode(encoded.prompt)
    assert chat.end_id not in encoded.targets and reason.encode().startswith(chat.bytes_of(encoded.targets) or b"no")


def test_reasons_that_cannot_be_spelled_are_left_out_and_a_prompt_that_cannot_be_cut_is_refused(
    llama_chat: ChatTokenizer,
) -> None:
    task, example = task_of("sst2", task_section("sst2", max_length=120)).explaining("Why?"), review("a dull film")
    for said, count in (({"r": ("It is.", True)}, 1), ({"r": ("It is a▁b.", True)}, 0), ({}, 0)):
        assert len(encode_rationales(task, llama_chat, [example], said, 12)) == count
    with pytest.raises(DataError, match="example r: the prompt is longer than max_length allows"):
        encode_rationales(task, llama_chat, [review("dull " * 200)], {"r": ("It is.", True)}, 12)
