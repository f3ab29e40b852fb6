"""What sections of the tree are made of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of the tree: immutable, and without room for misspelt keys.

    `grid` names the keys that span a method's points: each point is a run, whose result the others do not touch.
    `later` names keys that methods did not always have: at their default they are no part of what a result is of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    grid: ClassVar[frozenset[str]] = frozenset()
    later: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        """An error of this section, with what it has, in place of one of each unknown key."""
        if isinstance(values, Mapping) and (unknown := [key for key in values if key not in cls.model_fields]):
            valid = list(cls.model_fields)
            raise PydanticCustomError("unknown_key", "unknown key", {"key": str(unknown[0]), "valid": valid})
        return values


Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what NumPy takes; Python, torch and their products take more
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # a hub id, or a path that may begin with ~


def _unique(values: Any) -> Any:
    if isinstance(values, list | tuple):
        repeated = sorted({str(v) for v in values if list(values).count(v) > 1})
        if repeated:
            raise ValueError(f"repeats {', '.join(repeated)}")
    return values


Unique = BeforeValidator(_unique)
