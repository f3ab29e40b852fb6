"""KD1: the teacher's distribution over the next token, softened by a temperature, beside the gold answer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kdsuite.config import Count, Positive, Section, Settings, Share, Unique
from kdsuite.errors import SettingsError
from kdsuite.methods.base import DISTRIBUTIONS, Kept, Loss, Method, Pair, Point

ULD_HOTTEST = 2.0  # above it the gradient of ULD on 64 tokens is more than 45° off that of ULD on all

DivergenceKind = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "adaptive_kl", "total_variation", "taid"
]


class Kd1Settings(Section):
    """Logit distillation: α·CE + (1 − α)·T²·KL (Hinton et al. 2015, arXiv:1503.02531)."""

    grid: ClassVar = frozenset({"temperatures", "alphas"})
    later: ClassVar = frozenset({"standardise", "targets"})

    temperatures: Annotated[tuple[Positive, ...], Unique, Field(min_length=1)] = Field(
        default=(2.0, 4.0), description="softmax temperatures of the grid; default [2, 4]"
    )
    alphas: Annotated[tuple[Share, ...], Unique, Field(min_length=1)] = Field(
        default=(0.3, 0.5), description="weights of the hard label in the grid; 1 is B0; default [0.3, 0.5]"
    )
    divergence: DivergenceKind = Field(
        default="forward_kl", description="distance of the two distributions; default forward_kl"
    )
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5,
        description="the teacher's share in the mixture of jsd and skew_kl, the student's in that of skew_reverse_kl; "
        "default 0.5",
    )
    cross_tokenizer: Literal["byte_map", "uld", "hybrid"] = Field(
        default="byte_map",
        description="compare tokens of equal bytes, sorted probabilities, or these for unmapped tokens only; "
        "default byte_map",
    )
    top_k: Count = Field(default=64, description="teacher tokens kept per position; the rest is one bucket; default 64")
    dtype: Literal["float16", "float32"] = Field(
        default="float32", description="storage of the cached log-probabilities; default float32"
    )

    standardise: bool = Field(
        default=False,
        description="divide both models' logits by their standard deviation, so that only their order and relative "
        "distances are learned; default false",
    )
    targets: Literal["topk_tail", "sampled", "topk_sampled", "auto"] = Field(
        default="topk_tail",
        description="what top_k entries are: the likeliest tokens, the rest being one bucket; drawn from all tokens; "
        "half and half; or of these what suits the tail that is measured; default topk_tail",
    )

    @model_validator(mode="after")
    def _uld_sees_enough(self) -> Kd1Settings:
        if self.cross_tokenizer == "uld" and (hot := [t for t in self.temperatures if t > ULD_HOTTEST]):
            raise ValueError(
                f"cross_tokenizer uld at temperature {hot[0]:g}: of the kept tokens alone it is another loss above "
                f"{ULD_HOTTEST:g}; lower temperatures, or take byte_map or hybrid"
            )
        return self

    @model_validator(mode="after")
    def _draws_estimate_the_forward_kl(self) -> Kd1Settings:
        needed = {"divergence": "forward_kl", "cross_tokenizer": "byte_map", "standardise": False}
        for name, value in needed.items():
            if self.targets != "topk_tail" and getattr(self, name) != value:
                raise ValueError(
                    f"targets {self.targets} with {name} {getattr(self, name)}: what is drawn at T estimates the "
                    f"forward KL at T, token by token, only; set {name} to {value}, or targets to topk_tail"
                )
        return self


class LogitDistillation(Method):
    """α·⟨CE⟩ + (1 − α)·T²·⟨KL(p^T ‖ q^T)⟩; a part of weight 0 is not computed."""

    name, title = "KD1", "logit distillation"
    symbols = {"temperature": "T", "alpha": "α"}
    letters = {"temperature": "T", "alpha": "a"}
    sections = {"kd1": Kd1Settings}
    needs = frozenset({DISTRIBUTIONS})

    def points(self, settings: Settings) -> list[dict[str, float]]:
        kd1 = settings.section(Kd1Settings)
        return [{"temperature": t, "alpha": a} for t in kd1.temperatures for a in kd1.alphas]

    def kept(self, settings: Settings) -> Kept:
        kd1 = settings.section(Kd1Settings)
        draws = {"topk_tail": (), "auto": ("sampled", "topk_sampled")}.get(kd1.targets, (kd1.targets,))
        return Kept(
            kd1.top_k, kd1.dtype, frozenset(kd1.temperatures), standardised=kd1.standardise, draws=frozenset(draws)
        )

    def check(self, settings: Settings, labels: int) -> None:
        if settings.section(Kd1Settings).standardise and labels == 2:
            raise SettingsError(
                "kd1.standardise with two labels: all scores are +1 or −1 then, and nothing can be learned from them; "
                "set it to false"
            )

    def reads(self, settings: Settings, point: Point) -> frozenset[str]:
        return self.needs if point["alpha"] < 1 else frozenset()

    def loss(self, settings: Settings, point: Point, pair: Pair) -> Loss:
        from kdsuite.methods.terms import Divergence, OnTarget

        kd1, alpha = settings.section(Kd1Settings), point["alpha"]
        terms: Loss = {"ce": OnTarget(alpha)} if alpha > 0 else {}
        if alpha < 1:
            how = kd1.divergence, kd1.beta, kd1.cross_tokenizer, pair.unmapped, kd1.standardise
            terms["kd"] = Divergence(1.0 - alpha, point["temperature"], *how)
        return terms


KD1 = LogitDistillation()
