"""What a method is: which text is learned, what the teacher must offer for it, over which points, with which loss.

A method is one file with one object, registered as an entry point of `kdsuite.methods` (see docs/extending.md).
Between methods nothing differs but the text that is learned and the loss: same examples, order, steps, learning
rate and seeds. This module needs no torch, so that a configuration is read at once; a loss imports it when made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from inspect import isfunction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdsuite.config import Section, Settings
from kdsuite.config.plugins import METHODS, base_method, plugins

if TYPE_CHECKING:
    import torch

    from kdsuite.methods.terms import Term
    from kdsuite.teacher.base import OutputSettings

Loss = dict[str, "Term"]  # a weighted sum of terms, by the name of the part
Point = Mapping[str, float]  # the hyper-parameters of a run by name: {} where there is nothing to choose

ANSWERS, DISTRIBUTIONS, STATES, LIVE, RATIONALES = "answers", "distributions", "states", "live", "rationales"
NO_OUTPUTS = frozenset({ANSWERS, LIVE, RATIONALES})  # what is no part of the outputs at target positions
LABELLED = {ANSWERS: "class_scores", DISTRIBUTIONS: "class_scores"}  # what stands for it where labels are scored


@dataclass(frozen=True)
class Kept:
    """What of the teacher's outputs is kept for training, at target positions."""

    top_k: int = 0  # tokens of each distribution
    dtype: str = "float16"  # of their log-probabilities
    temperatures: frozenset[float] = frozenset()
    states: bool = False  # of the matched layers
    standardised: bool = False  # the distributions of z-scored logits, too
    draws: frozenset[str] = frozenset()  # kinds of drawn entries, of which a run takes the one, or none, that suits

    def __or__(self, other: Kept) -> Kept:
        """Enough for both."""
        return Kept(
            max(self.top_k, other.top_k),
            max(self.dtype, other.dtype),  # float16 < float32
            self.temperatures | other.temperatures,
            self.states or other.states,
            self.standardised or other.standardised,
            self.draws | other.draws,
        )

    def outputs(self, layers: Iterable[int], labels: int) -> OutputSettings:
        """What a teacher is asked for: states of these `layers`, if any are kept; where `labels` are scored, which is
        exact, nothing is drawn."""
        from kdsuite.teacher.base import OutputSettings

        return OutputSettings(
            top_k=self.top_k,
            dtype=self.dtype,
            temperatures=tuple(sorted(self.temperatures - {1.0})),
            layers=tuple(sorted(layers)) if self.states else (),
            labels=labels,
            standardised=self.standardised,
            draws=() if labels else tuple(sorted(self.draws)),
        )


@dataclass(frozen=True)
class OnPolicy:
    """The student writes a `share` of the batches itself, sampling at a temperature, up to the `first_tokens` of an
    answer's greatest length (a share, too)."""

    share: float
    temperature: float = 1.0
    first_tokens: float = 1.0


@dataclass(frozen=True)
class Request:
    """What is put behind a question so that the teacher gives the reason of an answer, not the answer alone; and the
    most tokens of the teacher's that a reason may have."""

    text: str
    max_new_tokens: int


@dataclass(frozen=True)
class Pair:
    """What a loss may need to know of its student and teacher, as far as the method asks for it."""

    layers: Sequence[tuple[int, int]] = ()  # (student layer, teacher layer) that are matched, from 1
    widths: Sequence[tuple[int, int]] = ()  # of their states
    unmapped: torch.Tensor | None = None  # [V] bool, the student's tokens that the teacher lacks


class Method:
    """A way of distilling. `title` and `symbols` (of its point's values) are what tables and figures call it by.

    `sections` are its settings by their key in a configuration; `needs` what a teacher must offer for it;
    `lesson` whose text is learned: `gold`, or `teacher` for the teacher's cleaned answers.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    symbols: ClassVar[Mapping[str, str]] = {}
    letters: ClassVar[Mapping[str, str]] = {}  # of its point's values in run ids: T2_a0.3
    sections: ClassVar[Mapping[str, type[Section]]] = {}
    needs: ClassVar[frozenset[str]] = frozenset()
    lesson: ClassVar[Literal["gold", "teacher"]] = "gold"

    def __init_subclass__(cls) -> None:
        """What learns the teacher's text needs its answers, whether it says so or not."""
        cls.needs = frozenset(cls.needs) | ({ANSWERS} if cls.lesson == "teacher" else set())

    def points(self, settings: Settings) -> list[dict[str, float]]:
        """The grid of its hyper-parameters, in the order in which they are run."""
        return [{}]

    def kept(self, settings: Settings) -> Kept | None:
        """What the cache keeps for it, None if it reads nothing from there."""
        if not self.needs - NO_OUTPUTS:
            return None
        temperatures = {point["temperature"] for point in self.points(settings) if "temperature" in point}
        top_k = 64 if DISTRIBUTIONS in self.needs else 0
        return Kept(top_k, "float32", frozenset(temperatures), states=STATES in self.needs)

    def reads(self, settings: Settings, point: Point) -> frozenset[str]:
        """What of the teacher's outputs a run at this point reads in training, among `needs` (α = 1 reads nothing)."""
        return self.needs - NO_OUTPUTS

    def on_policy(self, settings: Settings, point: Point) -> OnPolicy | None:
        """Whether and how the student writes what is learned; where labels are scored there is nothing to write."""
        return None

    def request(self, settings: Settings, point: Point) -> Request | None:
        """How the teacher is asked for the reasons that are learned beside the answers, None if none are."""
        return None

    def layers(self, settings: Settings, student: int, teacher: int) -> list[tuple[int, int]]:
        """Pairs (student layer, teacher layer), from 1, that are matched in models of these depths; the last ones."""
        return [(student, teacher)] if STATES in self.needs else []

    def accepts(self, settings: Settings, row: Mapping[str, Any]) -> bool:
        """Whether an answer of the teacher (its row of answers.jsonl) is learned."""
        return True

    def identity(self, settings: Settings) -> dict[str, Any]:
        """Its settings as far as they decide a run's result: without the grid, which the point stands for."""
        known = {}
        for key, kind in self.sections.items():
            own = settings.section(kind)
            old = {name for name in kind.later if getattr(own, name) == kind.model_fields[name].default}
            known[key] = own.model_dump(exclude={*kind.grid, *old})
        return known

    def check(self, settings: Settings, labels: int) -> None:
        """SettingsError where its settings mean nothing on a task of so many labels, 0 where answers are free."""

    def loss(self, settings: Settings, point: Point, pair: Pair) -> Loss:
        """The loss on a run's supervised positions."""
        raise NotImplementedError


class Variant(Method):
    """A method under other settings, those of `variants.NAME`: as `KD1-uld`, to be compared with the method itself."""

    def __init__(self, base: Method, name: str):
        title = f"{base.title} ({name.removeprefix(base.name)[1:]})"
        about = {key: getattr(base, key) for key in ("symbols", "letters", "sections", "needs", "lesson")}
        vars(self).update(about, base=base, name=name, title=title)
        for hook in (name for name, what in vars(Method).items() if isfunction(what) and not name.startswith("_")):
            setattr(self, hook, partial(self._under_its_settings, getattr(base, hook)))

    def _under_its_settings(self, hook: Callable[..., Any], settings: Settings, *more: Any) -> Any:
        return hook(settings.under(settings.variants[self.name]), *more)


@cache
def method(name: str) -> Method:
    """An installed method, or a variant of one. KeyError if there is none of that name."""
    known, base = plugins(METHODS), base_method(name)
    return known[name] if base in (name, None) else Variant(known[base], name)


def needed(methods: Sequence[Method], labelled: bool) -> frozenset[str]:
    """What a teacher must offer for some methods on a task, where labels are scored or answers generated: where labels
    are, nothing is written that it would have to read."""
    needs = frozenset(need for one in methods for need in one.needs)
    return frozenset(LABELLED.get(need, need) for need in needs - {LIVE}) if labelled else needs


def kept_by(methods: Sequence[Method], settings: Settings) -> Kept:
    """What is kept of the teacher's outputs: enough for all of some methods, 64 tokens where none has a say in it.

    Distributions are kept as this package's other methods want them, too, so that a method that is added to a
    configuration finds the teacher's answers where they are.
    """
    own = [one for one in plugins(METHODS).values() if type(one).__module__.startswith("kdsuite.")]
    wanted = [one.kept(settings) for one in methods]
    wanted += [kept and replace(kept, states=False) for kept in (one.kept(settings) for one in own)]
    kept = reduce(Kept.__or__, filter(None, wanted), Kept())
    return kept if kept.top_k else replace(kept, top_k=64, dtype="float32")
