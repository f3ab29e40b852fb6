"""Positions correspond by bytes of the target, tokens by their own bytes."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdsuite.methods.alignment import align, map_vocabulary
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.example import canonical

# ▁ is how SentencePiece writes a blank, so it has no spelling of its own there
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), min_size=1, max_size=60).map(
    lambda t: canonical(t.strip())
)


def check_aligned(teacher: ChatTokenizer, student: ChatTokenizer, target: str) -> None:
    said, own_answer = teacher.answer(target), student.answer(target)
    t, s = said.target_ids, own_answer.target_ids
    pairs = align(said.spans, own_answer.spans)
    assert pairs[0] == (0, 0) and pairs[-1] == (len(s), len(t))  # the first token and the end of turn
    for own, other in pairs:
        assert student.bytes_of(s[:own]) == teacher.bytes_of(t[:other])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=TEXT.filter(bool))
def test_aligned_positions_have_read_the_same_bytes(qwen_chat, llama_chat, target) -> None:
    check_aligned(qwen_chat, llama_chat, target)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=TEXT.filter(bool))
def test_also_with_the_real_tokenizers(real_chats, target) -> None:
    check_aligned(real_chats["qwen2.5"], real_chats["tinyllama"], target)


def test_the_same_tokenizer_aligns_everything_and_maps_every_token_to_itself(qwen_chat) -> None:
    answer = qwen_chat.answer("Ada Lovelace")
    assert align(answer.spans, answer.spans) == [(i, i) for i in range(len(answer.target_ids) + 1)]
    to_student = map_vocabulary(qwen_chat, qwen_chat).to_student
    mapped = to_student >= 0
    assert (to_student[mapped] == np.flatnonzero(mapped)).all()
    assert [i for i in np.flatnonzero(~mapped) if qwen_chat.token_bytes[i]] == []


def test_mapped_tokens_have_equal_bytes_and_the_map_is_one_to_one(qwen_chat, llama_chat) -> None:
    for teacher, student in ((qwen_chat, llama_chat), (llama_chat, qwen_chat)):
        to_student = map_vocabulary(teacher, student).to_student
        pairs = [(t, int(s)) for t, s in enumerate(to_student) if s >= 0]
        assert len({s for _, s in pairs}) == len(pairs)
        assert (teacher.end_id, student.end_id) in pairs
        assert all(teacher.token_bytes[t] == student.token_bytes[s] for t, s in pairs if t != teacher.end_id)


def test_the_default_pair_reaches_82_6_percent_of_tinyllamas_tokens(real_chats) -> None:
    """26,441 match as bytes, counting `<s>`, `</s>` and `<unk>`, which Qwen2.5 has as ordinary text. As control
    tokens they are not the same thing: only `</s>` is matched, by its role, to `<|im_end|>`."""
    teacher, student = real_chats["qwen2.5"], real_chats["tinyllama"]
    mapped = map_vocabulary(teacher, student)
    assert mapped.student_size == 32_000
    assert mapped.reached == 26_441 - 2
    assert round(mapped.share, 3) >= 0.826
    control = {token.encode() for token in student.tokenizer.all_special_tokens}
    assert control <= {spelled for spelled in teacher.token_bytes if spelled}


def test_first_and_last_position_are_aligned_on_all_squad_dev_answers(real, real_chats) -> None:
    articles = json.loads((real / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))["data"]
    answers = {
        canonical(a["text"].strip())
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        for a in question["answers"]
    }
    assert len(answers) > 10_000
    for answer in answers:
        check_aligned(real_chats["qwen2.5"], real_chats["tinyllama"], answer)
