"""How an arm's learning rate moves over its run, as a study file says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    WithJsonSchema,
    model_validator,
)

from paretune.study.mistakes import Mistake, MistakesError
from paretune.study.quantity import Quantity


def _span(value: Any) -> str:
    """A share of the run (``10%``) or a quantity (``100ba``), in its shortest spelling."""
    text = str(value).strip()
    if text.endswith("%"):
        try:
            share = float(text[:-1])
        except ValueError:
            raise ValueError(f"'{text}' is not a share: write it as 10%") from None
        if not 0 <= share <= 100:
            raise ValueError(f"'{text}' must lie between 0% and 100%")
        return f"{share!r}%".replace(".0%", "%")
    if text == "0":
        return "0%"
    try:
        return str(Quantity.parse(value))
    except ValueError:
        raise ValueError(
            f"'{text}' is neither a share of the run nor a quantity: write 10%, 100ba or 2M"
        ) from None


Span = Annotated[
    str,
    BeforeValidator(_span),
    WithJsonSchema(
        {"type": ["string", "number"], "description": "a share of the run (10%) or a quantity"}
    ),
]


class Schedule(BaseModel):
    """How the learning rate moves over a run; every factor multiplies the arm's peak rate."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    shape: Literal["constant", "cosine", "inverse_sqrt", "trapezoid"] = "cosine"
    warmup: Span = Field(
        default="10%", description="linear rise from 0: a share of the run or a quantity"
    )
    cooldown: Span | None = Field(
        default=None,
        description="linear fall at the end; trapezoid falls over the last 20% by default",
    )
    final: StrictFloat = Field(
        default=0.0, ge=0, le=1, description="factor at the last step (cosine, cooldown)"
    )

    @model_validator(mode="after")
    def _cooldown_fits(self) -> Schedule:
        if self.cooldown is not None and self.shape == "cosine":
            raise MistakesError(
                Mistake(("cooldown",), "a cosine schedule has none: use constant or trapezoid")
            )
        return self

    def cooldown_span(self) -> str:
        """The cooldown as a span; ``0%`` where there is none."""
        if self.cooldown is None:
            return "20%" if self.shape == "trapezoid" else "0%"
        return self.cooldown
