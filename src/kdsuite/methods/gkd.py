"""GKD: on-policy distillation. The student writes, the teacher says what it would have written there."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdsuite.config import Positive, Section, Settings, Share, Unique
from kdsuite.methods.base import DISTRIBUTIONS, LIVE, Kept, Loss, Method, OnPolicy, Pair, Point
from kdsuite.methods.kd1 import DivergenceKind, Kd1Settings


class GkdSettings(Section):
    """On-policy distillation: divergence on the student's own answers (Agarwal et al. 2024, GKD, arXiv:2306.13649)."""

    grid: ClassVar = frozenset({"lambdas"})

    lambdas: Annotated[tuple[Share, ...], Unique, Field(min_length=1)] = Field(
        default=(0.5,),
        description="shares of the batches that the student writes itself; 0 is KD1 with α = 0, T = 1, this divergence",
    )
    divergence: DivergenceKind = Field(default="jsd", description="distance of the two distributions; default jsd")
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.5, description="as kd1.beta; default 0.5")
    cross_tokenizer: Literal["byte_map", "uld", "hybrid"] = Field(
        default="byte_map", description="as kd1.cross_tokenizer; default byte_map"
    )
    temperature: Positive = Field(default=1.0, description="of the student's sampling; default 1")
    first_tokens: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="samples are of at most this share of max_new_tokens; default 1"
    )


class OnPolicyDistillation(Method):
    """⟨D(p ‖ q)⟩ over the gold answer, or with probability λ per batch over an answer that the student samples.

    Where labels are scored, a student's sample is a label, and the divergence of the two distributions over the labels
    does not depend on which: it is exact for any λ.
    """

    name, title = "GKD", "on-policy distillation"
    symbols = {"on_policy": "λ"}
    letters = {"on_policy": "p"}
    sections = {"gkd": GkdSettings}
    needs = frozenset({DISTRIBUTIONS, LIVE})

    def points(self, settings: Settings) -> list[dict[str, float]]:
        return [{"on_policy": share} for share in settings.section(GkdSettings).lambdas]

    def kept(self, settings: Settings) -> Kept:
        kd1 = settings.section(Kd1Settings)  # whose cache it reads at gold answers
        return Kept(kd1.top_k, kd1.dtype)

    def identity(self, settings: Settings) -> dict[str, Any]:
        kd1, default = settings.section(Kd1Settings), Kd1Settings()
        read = {name: getattr(kd1, name) for name in ("top_k", "dtype") if getattr(kd1, name) != getattr(default, name)}
        return super().identity(settings) | ({"kd1": read} if read else {})

    def on_policy(self, settings: Settings, point: Point) -> OnPolicy | None:
        gkd = settings.section(GkdSettings)
        return OnPolicy(point["on_policy"], gkd.temperature, gkd.first_tokens) if point["on_policy"] else None

    def loss(self, settings: Settings, point: Point, pair: Pair) -> Loss:
        from kdsuite.methods.terms import Divergence

        gkd = settings.section(GkdSettings)
        return {"kd": Divergence(1.0, 1.0, gkd.divergence, gkd.beta, gkd.cross_tokenizer, pair.unmapped)}


GKD = OnPolicyDistillation()
