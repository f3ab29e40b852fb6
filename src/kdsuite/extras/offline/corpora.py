"""Two small English corpora made from rules, so that the suite runs without network, data or weights.

Film opinions stand in for reviews. A label follows from the sentence by three rules: a negated word counts as its
opposite; in "although X, Y" and "X, but Y" the main clause Y decides; neutral remarks count nothing. Words alone do
not tell: many sentences hold both kinds.

Passages stand in for an encyclopedia's. A context tells three facts about a person or a building and is asked for
each of them; the answer is a word of the context, found in it once. The other two are tempting wrong answers.

Students learn what an annotator `said`, who is in a hurry at a fixed share of the records (`HURRY`). Then a film
opinion is read to the end of its first clause, which contrast turns round; and of a passage the first other fact is
told where one was asked for that is `OVERLOOKED`. Where this concerns most records of a kind, a student that follows
the annotator learns the mistake itself, however long it trains; of all other kinds what it learns is right. So its
level depends less on the training. Dev is the annotator's, too, as it is carved from training: nobody else knows what
is right there. What the reported split is scored against is right, and so is what a teacher learns from. Hence a
student that follows its teacher can be better: the effect that the offline run is there to show.

Everything is a pure function of its arguments (`random.Random(seed)`) and of the words in `words.yaml`. Tasks get
at a corpus by the name of its function.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import yaml

Item = TypeVar("Item")


def _lists(section: dict[str, Any]) -> dict[str, Any]:
    """A section of the word file, its texts as lists of words."""
    return {name: v.split() if isinstance(v, str) else v for name, v in section.items()}


WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
FILMS, NAMES = _lists(WORDS["films"]), _lists(WORDS["names"])

FORMS = {"plain": 35, "agreement": 29, "contrast": 36}  # of an opinion, with their weights
INTENSITIES = (0, 1, 1, 1, 2)  # mild, plain, strong
LABELS = ("negative", "positive")
NEGATED = 0.05  # share of the clauses of plain intensity
FACTS = 3  # told and asked in each passage
HURRY = {"films": 0.75, "passages": 0.75}  # share of the records that the annotator is in a hurry at
OVERLOOKED = ("surnames",)  # values that an annotator in a hurry does not look up
NOTED = 2  # passages for each review of the pretraining text: to look something up is the harder of the two

# ---------------------------------------------------------------------------------------------- film opinions


def film_opinions(n: int, seed: int) -> list[dict[str, str]]:
    """Make `n` different film opinions, half of them positive.

    Returns:
        Records `{"sentence", "label", "said"}` in random order; the label is "positive" or "negative", and what the
        annotator said is the label, or in `HURRY` of those with a contrast the other one.
    """
    random, annotator = Random(f"film opinions {seed}"), Random(f"annotator of films {seed}")
    leanings = [(-1) ** index for index in range(n)]
    random.shuffle(leanings)
    seen: set[str] = set()
    return [
        {
            "sentence": _unseen(seen, lambda leaning=leaning, form=form: _opinion(random, leaning, form), str),
            "label": LABELS[leaning > 0],
            "said": LABELS[(leaning > 0) != (form == "contrast" and annotator.random() < HURRY["films"])],
        }
        for leaning, form in zip(leanings, _forms(random, n), strict=True)
    ]


def _forms(random: Random, n: int) -> list[str]:
    return random.choices(list(FORMS), list(FORMS.values()), k=n)


def _opinion(random: Random, leaning: int, form: str) -> str:
    """One opinion in one sentence, sometimes with an opener and a neutral remark around it."""
    sentence = _sentence(random, leaning, form)
    if random.random() < 0.3:
        sentence = f"{_capital(random.choice(FILMS['openers']))}, {sentence[0].lower()}{sentence[1:]}"
    if random.random() < 0.3:
        remark = random.choice(FILMS["remarks"])
        sentence = f"{remark} {sentence}" if random.random() < 0.5 else f"{sentence} {remark}"
    return sentence


def _sentence(random: Random, leaning: int, form: str) -> str:
    """One clause; two that agree; or a main clause that decides against a subordinate one."""
    if form == "plain":
        clause = _clause(random, random.choice(FILMS["aspects"]), leaning)
        return f"{_capital(clause)} {random.choice(FILMS['periods'])}."
    first, second = random.sample(FILMS["aspects"], 2)
    main = _clause(random, first, leaning)
    side = _clause(random, second, leaning if form == "agreement" else -leaning)
    text = "{Main}, and {side}." if form == "agreement" else random.choice(FILMS["contrasts"])
    return text.format(main=main, side=side, Main=_capital(main), Side=_capital(side))


def _clause(random: Random, aspect: str, leaning: int) -> str:
    """A clause such as "the plot is utterly dull"; only those of plain intensity are negated."""
    intensity = random.choice(INTENSITIES)
    modifier = (random.choice(FILMS["mild"]), "", random.choice(FILMS["strong"]))[intensity]
    negated = intensity == 1 and random.random() < NEGATED
    word = random.choice(FILMS["praise" if (leaning > 0) != negated else "blame"])
    modifier = random.choice(FILMS["negations"]) if negated else modifier
    return " ".join(filter(None, ["the", aspect, "is", modifier, word]))


# --------------------------------------------------------------------------------------------------- passages


class Statement(NamedTuple):
    """A fact about a named subject in a passage, with its value and the sentence that states it."""

    fact: dict[str, Any]
    name: str
    value: str
    sentence: str


def passages(n: int, seed: int) -> list[dict[str, str | int]]:
    """Make `n` questions, three to a context, on different contexts.

    Returns:
        Records `{"context", "question", "answer", "answer_start", "said", "said_start"}`, a context's questions
        together; what the annotator said is the answer, or in `HURRY` of the records whose answer is `OVERLOOKED`
        the first other value of the passage.
    """
    random, annotator = Random(f"passages {seed}"), Random(f"annotator of passages {seed}")
    seen: set[str] = set()
    records: list[dict[str, str | int]] = []
    while len(records) < n:
        statements = _unseen(seen, lambda: _passage(random), _text)
        context = _text(statements)
        for statement in random.sample(statements, FACTS):
            others = [other.value for other in statements if other is not statement]
            slips = statement.fact["values"] in OVERLOOKED and annotator.random() < HURRY["passages"]
            said = others[0] if slips else statement.value
            records.append(
                {
                    "context": context,
                    "question": random.choice(statement.fact["questions"]).format(who=statement.name),
                    "answer": statement.value,
                    "answer_start": context.index(statement.value),
                    "said": said,
                    "said_start": context.index(said),
                }
            )
    return records[:n]


def _passage(random: Random) -> list[Statement]:
    """Facts about a person or a building: the full name comes first, then a short form of it or a pronoun."""
    used: set[str] = set()
    if random.random() < 0.6:
        short, kind = _fresh(random, NAMES["women"] + NAMES["men"], used), "person"
        name = f"{short} {_fresh(random, NAMES['surnames'], used)}"
        pronoun = "She" if short in NAMES["women"] else "He"
    else:
        building, kind = random.choice(NAMES["buildings"]), "building"
        name, short, pronoun = f"The {random.choice(NAMES['adjectives'])} {building}", f"the {building.lower()}", "It"
    statements = []
    for index, fact in enumerate(random.sample(WORDS["facts"][kind], FACTS)):
        who = random.choice((_capital(short), pronoun)) if index else name
        value = _fresh(random, NAMES[fact["values"]], used)
        sentence = random.choice(fact["statements"]).format(who=who, value=value)
        statements.append(Statement(fact, short, value, sentence))
    return statements


def _fresh(random: Random, pool: Sequence[str], used: set[str]) -> str:
    """A name or value that the passage has not used yet, so that every answer is found once."""
    while (value := random.choice(pool)) in used:
        pass
    used.add(value)
    return value


def _text(statements: Sequence[Statement]) -> str:
    return " ".join(statement.sentence for statement in statements)


# ------------------------------------------------------------------------------------------------ pretraining


def pretraining_text(n: int, seed: int) -> list[str]:
    """Make `n` documents of the same language for pretraining: a review, then two passages, in turn.

    The first line tells something new. The other lines, each below a heading or a question, can be foreseen from it:
    notes on a passage tell its facts again in random order, the verdict on a review is of one leaning with its two
    opinions. No opinion is called positive or negative.
    """
    random = Random(f"pretraining text {seed}")
    return [_noted(random) if index % (NOTED + 1) else _review(random) for index in range(n)]


def _review(random: Random) -> str:
    leaning = random.choice((-1, 1))
    opinions = " ".join(_opinion(random, leaning, form) for form in _forms(random, 2))
    return f"{opinions}\nVerdict:\n{random.choice(FILMS['verdicts'][leaning])}"


def _noted(random: Random) -> str:
    statements = _passage(random)
    notes = [f"{_heading(random, s)}\n{s.value}" for s in random.sample(statements, len(statements))]
    return "\n".join([_text(statements), *notes])


def _heading(random: Random, statement: Statement) -> str:
    """What a statement tells, named or asked for, sometimes with an aside."""
    kind, aside = random.choice(("headings", "questions")), random.choice(WORDS["asides"])
    asked = random.choice(statement.fact[kind]).format(who=statement.name)
    if kind == "headings":
        return f"{_capital(asked)}{aside and ', '}{aside}:"
    return f"{asked} {_capital(aside)}:" if aside else asked


def _unseen(seen: set[str], make: Callable[[], Item], key: Callable[[Item], str]) -> Item:
    """Make items until one's key is new, and remember it."""
    while True:
        item = make()
        if key(item) not in seen:
            seen.add(key(item))
            return item


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
