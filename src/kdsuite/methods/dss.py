"""DSS: distilling step by step. The teacher explains, and the student learns to answer and to explain, one or the other
by what it is asked; it is tested on answers alone."""

from typing import Annotated, ClassVar

from pydantic import Field

from kdsuite.config import Count, Section, Settings, Unique
from kdsuite.methods.base import RATIONALES, Loss, Method, Pair, Point, Request


class DssSettings(Section):
    """Distilling step by step: CE + w · CE of the teacher's reason (Hsieh et al. 2023, arXiv:2305.02301)."""

    grid: ClassVar = frozenset({"weights"})

    weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Unique, Field(min_length=1)] = Field(
        default=(1.0,), description="weights w of the rationale; 0 is B0; default [1]"
    )
    max_new_tokens: Count = Field(
        default=96, description="longest rationale, in the teacher's tokens; prompts leave it room; default 96"
    )
    request: Annotated[str, Field(pattern=r"\S")] = Field(
        default="Instead of the answer alone, explain in one or two sentences which answer is right, and why.",
        description="what is put behind a question to get a rationale; default: to explain in one or two sentences",
    )


class StepByStep(Method):
    """⟨−log q(y | x)⟩ + w·⟨−log q(r | x, request)⟩: the gold answer y to the question x as it is, the teacher's
    rationale r to the question with a request to explain. Each mean is over its own tokens of a step."""

    name, title = "DSS", "distilling step by step"
    symbols = {"rationale_weight": "w"}
    letters = {"rationale_weight": "w"}
    sections = {"dss": DssSettings}
    needs = frozenset({RATIONALES})

    def points(self, settings: Settings) -> list[dict[str, float]]:
        return [{"rationale_weight": weight} for weight in settings.section(DssSettings).weights]

    def request(self, settings: Settings, point: Point) -> Request | None:
        dss = settings.section(DssSettings)
        return Request(dss.request, dss.max_new_tokens) if point["rationale_weight"] else None

    def loss(self, settings: Settings, point: Point, pair: Pair) -> Loss:
        from kdsuite.methods.terms import OnRationale, OnTarget

        weight = point["rationale_weight"]
        terms: Loss = {"ce": OnTarget(1.0)}
        return terms | {"rationale": OnRationale(weight)} if weight else terms


DSS = StepByStep()
