"""KD2: the text that the teacher itself answers, instead of the gold answer."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from kdsuite.config import Section, Settings, Share
from kdsuite.methods.b0 import FineTuning
from kdsuite.methods.base import ANSWERS


class Kd2Settings(Section):
    """Sequence-level distillation: CE on the teacher's cleaned answer (Kim & Rush 2016, arXiv:1606.07947)."""

    filter: Literal["all", "agrees_with_gold", "confident"] = Field(
        default="all", description="which of the teacher's answers are learned; default all"
    )
    min_confidence: Share = Field(
        default=0.5, description="confident: least probability of the label, or per token of the answer; default 0.5"
    )


class SequenceDistillation(FineTuning):
    """⟨−log q(ŷ)⟩ over the tokens of the teacher's cleaned answer ŷ and its end of turn."""

    name, title = "KD2", "sequence-level distillation"
    sections = {"kd2": Kd2Settings}
    needs = frozenset({ANSWERS})
    lesson = "teacher"

    def accepts(self, settings: Settings, row: Mapping[str, Any]) -> bool:
        kd2 = settings.section(Kd2Settings)
        if kd2.filter == "agrees_with_gold":
            return max(row["scores"].get(name, 0.0) for name in ("accuracy", "exact_match")) == 1.0
        return kd2.filter == "all" or row["confidence"] >= kd2.min_confidence


KD2 = SequenceDistillation()
