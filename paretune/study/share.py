"""A part of a whole, written as 5% or 0.05."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema


def _share(value: Any) -> float:
    given = value
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            value = float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"'{value}' is not a share: write it as 5%") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'{value}' is not a share: write it as 5%")
    if not 0 < value < 1:
        raise ValueError(
            f"a share must lie between 0% and 100%, found {given}"
            + (f": write {given}%" if given == value and 1 < value < 100 else "")
        )
    return float(value)


def _percent(share: float) -> str | float:
    """A share as people write it, or as a number where that would round it."""
    text = f"{share * 100:g}%"
    return text if _share(text) == share else share


Share = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(_percent, return_type=str | float),
    WithJsonSchema({"type": ["string", "number"], "description": "a share such as 5%"}),
]
