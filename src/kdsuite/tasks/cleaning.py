"""From what a model wrote to the answer it means, without looking at the gold answer.

What stands in the passage letter by letter comes through, but for a full stop behind it, even if it is a whole
sentence, as some gold answers are: a model that answers as it was taught to loses nothing. For the others:

1. Run-on text goes: a lead ("According to the context, …"), everything from a turn marker or a justification
   on, further lines and sentences. A refusal ("The context does not mention …") is no answer.
2. What remains is taken in the passage's own casing if its words stand there in a row.
3. A text that restates the question, or is a sentence of its own, is narrowed to the stretch it shares with
   the passage that says most beyond the question: a local alignment of words without gaps (Smith & Waterman
   1981), one pass over the text. Of equal stretches the last is taken: English puts what is new at the end.

The rules are for English.
"""

from __future__ import annotations

import re

RULES = 2  # raise it when the rules change: answers, which are kept raw, are then cleaned anew
STEM = 6  # letters, without an ending, by which a word of the answer is known from the question
SENTENCE = 8  # a text of more words than this that is not in the passage is a sentence, not an answer

_CONTEXT = r"the (?:\w+ )?(?:context|passage|text)\b(?: provided| given)?"
_SOURCE = rf"(?:according to|based on) {_CONTEXT}"
_LEAD = re.compile(
    rf"\A(?:(?:{_SOURCE}|the (?:\w+ )?answer(?: to the question)? is\b|answer:)[,:]? ?"
    rf"|{_CONTEXT}(?: \w+ly)? (?:states|mentions|says)\b(?: that\b)?[,:]? ?)+",
    re.IGNORECASE,
)
_ASIDE = re.compile(rf",? {_SOURCE},?")
_RUN_ON = re.compile(
    r"(?:Human|User|Assistant|Context|Question|Answer|Explanation|Note|Source) ?:|<\||\[citation|You are an? "
    r"|(?<=[\w.!?)”])Human\b|(?<=\S)Human$|(?<=\S )(?:Based on|According to|The context)\b"
)
_REFUSAL = re.compile(rf"(?=.*{_CONTEXT}).*n[o']t(?: \w+)? (?:mention|provid|speci|stat|contain|deriv)", re.I)
_NO_TITLE_OR_INITIAL = r"(?<!\b[^\W\d_]\.)(?<!\b[DMSJ][rst]\.)(?<!\bMrs\.)(?<!\bProf\.)"
_SENTENCE_END = re.compile(rf"[.!?]{_NO_TITLE_OR_INITIAL}[\"'”’)]*(?= [^a-z])")
_FULL_STOP = re.compile(r"(?<!\.\w)\.$")  # not the one of "U.S."
_ASKS_NUMBER = re.compile(r"\b(?:how (?:many|much|long|old|far)|when|year|date|decade|century|percent)", re.I)
_EDGE = " \"'“”‘’`*.,;:!?-–—"
_WORD = re.compile(r"[^\W\d_](?:\.[^\W\d_])+\b|\w+")  # "U.S" is one word
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e)$")
_NUMBERS = {*"one two three four five six seven eight nine ten eleven twelve hundred thousand".split()}
_FUNCTION_WORDS = {
    *"""a an the this that these those it its he she they them their his her him we our you your i s t so if
    of in on at by for to from with as into about over after before during between through and or but nor no
    not than then there both also because due while who whom whose which what when where why how is are was be
    were been being am do does did has have had having will would can could might must shall should""".split()
}


class _Text:
    """A text, its words in lower case, and the way back from words to the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.places = [match.span() for match in _WORD.finditer(text)]
        self.words = [text[start:end].lower() for start, end in self.places]

    def cut(self, first: int, last: int) -> str:
        """From word to word with the signs that belong to them: "$5", "7%", "U.S.", "(NSOM)"."""
        text, start, end = self.text, self.places[first][0], self.places[last][1]
        start -= text[start - 1 : start] in ("$", "£", "€", "¥")
        end += text[end : end + 1] == "%" or bool(re.search(r"\.\w\.$", text[start : end + 1]))
        end += text[end : end + 1] == ")" and text.count("(", start, end) > text.count(")", start, end)
        return " ".join(text[start:end].split())


def clean_answer(raw: str, context: str, question: str) -> str:
    """The answer, a span of the context where possible, on one line, never longer than `raw`; "" for none."""
    raw = raw.strip()
    if raw in context:
        return _FULL_STOP.sub("", " ".join(raw.split()))
    passage, answer = _Text(context), _Text(_first_line(raw))
    if not _find(answer, passage) or len(answer.words) > SENTENCE:
        answer = _Text(_SENTENCE_END.split(answer.text, maxsplit=1)[0].strip(_EDGE))
    found = _find(answer, passage)
    if not found and _REFUSAL.match(answer.text):
        return ""
    asked = {_stem(word) for word in _Text(question).words if word not in _FUNCTION_WORDS}
    restates = 2 * len(asked & {_stem(word) for word in answer.words}) >= len(asked) > 0
    if restates or (not found and len(answer.words) > SENTENCE):
        number = bool(_ASKS_NUMBER.search(question))
        weights = [_weight(word, asked, number) for word in answer.words]
        found = _most_telling(answer, weights, passage) or found
    return found if found and len(found) <= len(raw) else answer.text


def _first_line(raw: str) -> str:
    """The first line that says something, without a lead, up to the first sign of run-on text."""
    lines = (_LEAD.sub("", " ".join(line.split())) for line in raw.splitlines())
    text = next((line for line in lines if line.strip(_EDGE)), "")
    return _RUN_ON.split(_ASIDE.sub("", text), maxsplit=1)[0].strip(_EDGE)


def _find(answer: _Text, passage: _Text) -> str:
    """The answer's words where they stand in a row in the passage, whatever punctuation is between; or ""."""
    before, found, _ = f" {' '.join(passage.words)} ".partition(f" {' '.join(answer.words)} ")
    first = before.count(" ")
    return passage.cut(first, first + len(answer.words) - 1) if found and answer.words else ""


def _stem(word: str) -> str:
    return _ENDING.sub("", word)[:STEM]


def _weight(word: str, asked: set[str], number: bool) -> int:
    """What a word says beyond the question; function words cost a little, so that none is at an edge."""
    if word in _FUNCTION_WORDS:
        return -1
    if _stem(word) in asked:
        return -10
    return 60 if number and (word[0].isdigit() or word in _NUMBERS) else 10


def _most_telling(answer: _Text, weights: list[int], passage: _Text) -> str:
    """The stretch that answer and passage share with the greatest sum of weights; "" if none is above 0."""
    positions: dict[str, list[int]] = {}
    for at, word in enumerate(passage.words):
        positions.setdefault(word, []).append(at)
    best, stretch = 1, None
    ending: dict[int, tuple[int, int]] = {}  # last word of a stretch -> its sum, its first word
    for word, weight in zip(answer.words, weights, strict=True):
        before, ending = ending, {}
        for at in positions.get(word, ()):
            total, first = before.get(at - 1, (0, at))
            ending[at] = total, first = (total + weight, first) if total > 0 else (weight, at)
            if total >= best:
                best, stretch = total, (first, at)
    return passage.cut(*stretch) if stretch else ""
