"""Two small English corpora made from rules, so that the suite runs without network, data or weights.

Film opinions stand in for SST-2. A label follows from the sentence by four rules: a negated word counts as
its opposite; in "although X, Y" and "X, but Y" the main clause Y decides; in "X, while Y" the more intense
clause decides; neutral remarks count nothing. Words alone do not tell: many sentences hold both kinds.

Passages stand in for SQuAD. A context tells four facts or more about one to three subjects (people and
buildings) and is asked four times; the answer is a span of the context, found in it once. With several
subjects the other ones' facts are tempting wrong answers: the number of subjects is the difficulty dial.

Everything is a pure function of its arguments (`random.Random(seed)`, standard library only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

Item = TypeVar("Item")

# ---------------------------------------------------------------------------------------------- film opinions

PRAISE = (
    "absorbing brilliant charming clever convincing delightful elegant enchanting exquisite fresh funny "
    "gripping inventive lively memorable moving refreshing rewarding splendid stirring superb thrilling "
    "touching witty"
).split()
BLAME = (
    "annoying awkward bland boring clumsy dreary dull forced forgettable hollow insipid lifeless messy "
    "muddled painful pointless predictable ridiculous shallow sloppy stale tedious tiresome wooden"
).split()
STRONG = "utterly truly remarkably deeply absolutely extremely".split()
MILD = "somewhat slightly mildly rather fairly".split()
NEGATIONS = "not never hardly".split()
ASPECTS = (
    "acting camera cast comedy dialogue direction drama editing ending film humour music opening pacing "
    "photography plot romance score script sequel soundtrack story thriller villain"
).split()
PERIODS = (
    "for two hours", "from start to finish", "in the first half", "in the second half", "on a big screen",
    "on a second viewing", "at times", "in every scene",
)  # fmt: skip
OPENERS = (
    "for me", "in the end", "all in all", "as a whole", "to my mind", "on balance", "this time", "once again",
)  # fmt: skip
REMARKS = (
    "It runs for two hours.", "It was filmed in Rome.", "We saw it on a Sunday.", "It is based on a novel.",
    "There are three songs.", "It opened in May.", "It is set in the past.", "The hall was full.",
)  # fmt: skip
VERDICTS = {
    1: ("We loved it.", "We stayed to the end.", "We will see it again.", "It made our day."),
    -1: ("We left early.", "We want our money back.", "We fell asleep.", "It ruined our day."),
}
CONTRASTS = (
    "Although {side}, {main}.",
    "{Main}, although {side}.",
    "{Side}, but {main}.",
    "Even though {side}, {main}.",
)
INTENSITIES = (0, 1, 1, 1, 2)
NEGATED = 0.25  # share of the clauses of plain intensity


@dataclass(frozen=True)
class Clause:
    """What one clause says of the film: its words, its leaning (±1) and its intensity (0 mild … 2 strong)."""

    text: str
    leaning: int
    intensity: int


def _clause(random: Random, aspect: str, leaning: int, intensity: int = 1) -> Clause:
    """A clause such as "the plot is utterly dull"; only clauses of plain intensity are negated."""
    modifier = {0: random.choice(MILD), 1: "", 2: random.choice(STRONG)}[intensity]
    negated = intensity == 1 and random.random() < NEGATED
    word = random.choice(PRAISE if (leaning > 0) != negated else BLAME)
    words = ["the", aspect, "is", random.choice(NEGATIONS) if negated else modifier, word]
    return Clause(" ".join(filter(None, words)), leaning, intensity)


def _plain(random: Random, leaning: int) -> str:
    clause = _clause(random, random.choice(ASPECTS), leaning, random.choice(INTENSITIES))
    return f"{_capital(clause.text)} {random.choice(PERIODS)}."


def _agreement(random: Random, leaning: int) -> str:
    """Two clauses of one leaning."""
    first, second = (
        _clause(random, aspect, leaning, random.choice(INTENSITIES)).text
        for aspect in random.sample(ASPECTS, 2)
    )
    return f"{_capital(first)}, and {second}."


def _contrast(random: Random, leaning: int) -> str:
    """A main clause against a subordinate one of the other leaning: the main clause decides."""
    first, second = random.sample(ASPECTS, 2)
    main = _clause(random, first, leaning, random.choice(INTENSITIES)).text
    side = _clause(random, second, -leaning, random.choice(INTENSITIES)).text
    text = random.choice(CONTRASTS)
    return text.format(main=main, side=side, Main=_capital(main), Side=_capital(side))


def _balance(random: Random, leaning: int) -> str:
    """Two clauses of opposite leanings on equal terms: the more intense one decides."""
    first, second = random.sample(ASPECTS, 2)
    weak, strong = random.choice(((0, 1), (0, 2), (1, 2)))
    clauses = [_clause(random, first, leaning, strong).text, _clause(random, second, -leaning, weak).text]
    random.shuffle(clauses)
    return f"{_capital(clauses[0])}, while {clauses[1]}."


FORMS: tuple[Callable[[Random, int], str], ...] = (_plain, _agreement, _contrast, _balance)
FORM_WEIGHTS = (30, 30, 30, 10)


def _opinion(random: Random, leaning: int) -> str:
    """One opinion in one sentence, sometimes with an opener and a neutral remark around it."""
    sentence = random.choices(FORMS, FORM_WEIGHTS)[0](random, leaning)
    if random.random() < 0.3:
        sentence = f"{_capital(random.choice(OPENERS))}, {sentence[0].lower()}{sentence[1:]}"
    if random.random() < 0.3:
        remark = random.choice(REMARKS)
        sentence = f"{remark} {sentence}" if random.random() < 0.5 else f"{sentence} {remark}"
    return sentence


def film_opinions(n: int, seed: int) -> list[dict[str, str]]:
    """Make `n` different film opinions, half of them positive.

    Returns:
        Records `{"sentence", "label"}` in random order; the label is "positive" or "negative".
    """
    random = Random(f"film opinions {seed}")
    leanings = [(-1) ** index for index in range(n)]
    random.shuffle(leanings)
    seen: set[str] = set()
    return [
        {
            "sentence": _unseen(seen, lambda leaning=leaning: _opinion(random, leaning), str),
            "label": "positive" if leaning > 0 else "negative",
        }
        for leaning in leanings
    ]


# --------------------------------------------------------------------------------------------------- passages

WOMEN = "Alice Anna Clara Diana Edith Ellen Grace Helen Julia Laura Maria Rosa".split()
MEN = "Adam Boris Carl David Felix Henry Ivan Jacob Oscar Peter Robert Victor".split()
SURNAMES = (
    "Adler Barnes Blake Carter Cole Cross Ellis Fisher Frost Hale Hunt Keller Lane Marsh Novak Reed Stone "
    "Ward West Wolf"
).split()
TOWNS = (
    "Athens Basel Berlin Boston Cairo Delhi Dover Dublin Geneva Hamburg Kyoto Lima Lisbon London Madrid "
    "Milan Naples Oslo Paris Prague Quebec Venice Vienna Warsaw"
).split()
YEARS = [str(year) for year in range(1810, 1998, 8)]
TRADES = (
    "baker barber builder butcher carpenter chemist dentist doctor farmer gardener judge lawyer miner "
    "nurse painter pilot poet printer sailor singer surgeon tailor teacher weaver"
).split()
GOODS = (
    "boats books clocks coins dolls drums fossils lamps maps masks robes shells ships stamps swords toys"
).split()
ADJECTIVES = "Central Eastern Golden Grand Green National Old Red Royal Western".split()
BUILDINGS = "Castle Chapel Gallery Hall Library Mill Museum Palace Theatre Tower".split()


@dataclass(frozen=True)
class Fact:
    """One kind of fact: how a passage states it, how it is asked for, how it is told again, and its values.

    `{who}` is the subject, `{value}` the answer; every statement names the value exactly once.
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    heading: str
    values: tuple[str, ...]


SUBJECTS = (1, 1, 2)  # numbers of subjects to draw from
QUESTIONS = 4  # asked about each context
PEOPLE = tuple(f"{first} {last}" for first in WOMEN + MEN for last in SURNAMES)
SIGHTS = tuple(f"the {adjective} {building}" for adjective in ADJECTIVES for building in BUILDINGS)
PERSON_FACTS = (
    Fact(
        ("{who} was born in {value}.", "{who} came into the world in {value}."),
        ("Where was {who} born?", "What is the birthplace of {who}?"),
        "birthplace",
        tuple(TOWNS),
    ),
    Fact(
        ("{who} lives in {value}.", "{who} has a home in {value}."),
        ("Where does {who} live?", "Where is the home of {who}?"),
        "home",
        tuple(TOWNS),
    ),
    Fact(
        ("{who} works as a {value}.", "{who} is a {value} by trade."),
        ("What does {who} do for a living?", "What is the trade of {who}?"),
        "trade",
        tuple(TRADES),
    ),
    Fact(
        ("{who} left school in {value}.", "{who} finished school in {value}."),
        ("When did {who} leave school?", "When did {who} finish school?"),
        "last school year",
        tuple(YEARS),
    ),
    Fact(
        ("{who} was taught by {value}.", "{who} learned everything from {value}."),
        ("Who taught {who}?", "Who was the teacher of {who}?"),
        "teacher",
        PEOPLE,
    ),
)
BUILDING_FACTS = (
    Fact(
        ("{who} stands in {value}.", "{who} is found in {value}."),
        ("Where does {who} stand?", "Where is {who}?"),
        "town",
        tuple(TOWNS),
    ),
    Fact(
        ("{who} was built in {value}.", "{who} opened in {value}."),
        ("When was {who} built?", "When did {who} open?"),
        "year",
        tuple(YEARS),
    ),
    Fact(
        ("{who} was designed by {value}.", "{who} is the work of {value}."),
        ("Who designed {who}?", "Who is the architect of {who}?"),
        "architect",
        PEOPLE,
    ),
    Fact(
        ("{who} is known for its {value}.", "{who} shows old {value}."),
        ("What is {who} known for?", "What does {who} show?"),
        "collection",
        tuple(GOODS),
    ),
)


@dataclass(frozen=True)
class Statement:
    """A fact about a named subject in a passage, with its value and the sentence that states it."""

    fact: Fact
    name: str
    value: str
    sentence: str


def _subject(random: Random, used: set[str], facts: int, pronouns: bool) -> list[Statement]:
    """Facts about a person or a building: the full name comes first, then a short form of it or a pronoun."""
    if random.random() < 0.6:
        name, kinds = _fresh(random, PEOPLE, used), PERSON_FACTS
        short = name.split()[0]
        pronoun = "She" if short in WOMEN else "He"
    else:
        name, kinds = _fresh(random, SIGHTS, used), BUILDING_FACTS
        short, pronoun = f"The {name.split()[-1].lower()}", "It"
    later = (short, pronoun) if pronouns else (short,)
    statements = []
    for index, fact in enumerate(random.sample(kinds, facts)):
        who = random.choice(later) if index else _capital(name)
        value = _fresh(random, fact.values, used)
        sentence = random.choice(fact.statements).format(who=who, value=value)
        statements.append(Statement(fact, name, value, sentence))
    return statements


def _fresh(random: Random, pool: Sequence[str], used: set[str]) -> str:
    """A name or value none of whose words the passage has used yet, so that every answer is found once."""
    while True:
        value = random.choice(pool)
        if used.isdisjoint(value.split()):
            used.update(set(value.split()) - {"the"})
            return value


def _passage(random: Random, subjects: Sequence[int]) -> list[Statement]:
    """The statements of one passage, in its order; pronouns only where they are clear."""
    count = random.choice(subjects)
    used: set[str] = set()
    facts = QUESTIONS if count == 1 else max(2, QUESTIONS // count)
    return [s for _ in range(count) for s in _subject(random, used, facts, pronouns=count == 1)]


def _text(statements: Sequence[Statement]) -> str:
    return " ".join(statement.sentence for statement in statements)


def passages(n: int, seed: int, subjects: Sequence[int] = SUBJECTS) -> list[dict[str, str | int]]:
    """Make `n` questions, four to a context, on different contexts.

    Args:
        subjects: numbers of subjects to choose from for a context; more subjects are harder.

    Returns:
        Records `{"context", "question", "answer", "answer_start"}`, a context's questions together.
    """
    random = Random(f"passages {seed}")
    seen: set[str] = set()
    records: list[dict[str, str | int]] = []
    while len(records) < n:
        statements = _unseen(seen, lambda: _passage(random, subjects), _text)
        records += [
            _question(random, statement, _text(statements))
            for statement in random.sample(statements, QUESTIONS)
        ]
    return records[:n]


def _question(random: Random, statement: Statement, context: str) -> dict[str, str | int]:
    return {
        "context": context,
        "question": random.choice(statement.fact.questions).format(who=statement.name),
        "answer": statement.value,
        "answer_start": context.index(statement.value),
    }


# ------------------------------------------------------------------------------------------------ pretraining


def pretraining_text(n: int, seed: int, subjects: Sequence[int] = SUBJECTS) -> list[str]:
    """Make `n` documents of the same language for pretraining: passages and reviews in turn.

    The first line tells something new. The other lines, each below a heading that ends with a colon, can be
    foreseen from it: notes on a passage tell its facts again in random order, the verdict on a review is of
    one leaning with its three opinions. No question is asked, and no opinion is called positive or negative.
    """
    random = Random(f"pretraining text {seed}")
    return [_review(random) if index % 2 else _noted(random, subjects) for index in range(n)]


def _review(random: Random) -> str:
    leaning = random.choice((-1, 1))
    opinions = " ".join(_opinion(random, leaning) for _ in range(3))
    return f"{opinions}\nVerdict:\n{random.choice(VERDICTS[leaning])}"


def _noted(random: Random, subjects: Sequence[int]) -> str:
    statements = _passage(random, subjects)
    notes = [
        f"The {s.fact.heading} of {s.name}:\n{s.value}" for s in random.sample(statements, len(statements))
    ]
    return "\n".join([_text(statements), *notes])


def _unseen(seen: set[str], make: Callable[[], Item], key: Callable[[Item], str]) -> Item:
    """Make items until one's key is new, and remember it."""
    while True:
        item = make()
        if key(item) not in seen:
            seen.add(key(item))
            return item


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
