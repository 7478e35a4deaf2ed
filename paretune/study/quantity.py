"""Durations in the field's notation: ``8M`` (tokens), ``2ep`` (epochs), ``500ba`` (batches)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, Literal

Unit = Literal["tok", "ep", "ba"]

_MULTIPLES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_PATTERN = re.compile(
    r"^\s*(\d{1,18}(?:\.\d{1,18})?(?:[eE][+-]?\d{1,2})?)\s*([kKMBT]?)\s*(tok|ep|ba)?\s*$"
)
EXAMPLES = "write tokens as 8M or 8Mtok, epochs as 2ep, batches as 500ba"


@dataclass(frozen=True)
class Quantity:
    """An amount of training: ``amount`` of ``unit`` (``tok``, ``ep`` or ``ba``)."""

    amount: Fraction
    unit: Unit

    @classmethod
    def parse(cls, value: Any) -> Quantity:
        """Read ``8M``, ``1.5Btok``, ``2ep``, ``500ba`` or a plain number of tokens.

        Raises:
            ValueError: not in that notation, or not above zero.
        """
        if isinstance(value, Quantity):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"not a quantity: {EXAMPLES}")
        match = _PATTERN.match(str(value))
        if match is None:
            raise ValueError(f"'{value}' is not a quantity: {EXAMPLES}")
        number, multiple, unit = match.groups()
        amount = Fraction(number) * _MULTIPLES[multiple]
        if amount <= 0:
            raise ValueError(f"'{value}' must be above zero")
        if amount < 1 and unit in (None, "tok"):
            raise ValueError(f"'{value}' is less than one token: {EXAMPLES}")
        return cls(amount, unit or "tok")  # type: ignore[arg-type]

    def steps(self, *, tokens_per_step: int, steps_per_epoch: int) -> int:
        """Optimizer steps this amount takes, rounded up to a whole step (at least one)."""
        per_unit = {
            "tok": Fraction(1, tokens_per_step),
            "ep": Fraction(steps_per_epoch),
            "ba": Fraction(1),
        }
        return max(1, math.ceil(self.amount * per_unit[self.unit]))

    def __str__(self) -> str:
        if self.unit == "tok":
            for suffix in ("T", "B", "M", "k"):
                scaled = self.amount / _MULTIPLES[suffix]
                if scaled >= 1 and (scaled * 1000).denominator == 1:
                    return f"{_decimal(scaled)}{suffix}"
            return _decimal(self.amount)
        return f"{_decimal(self.amount)}{self.unit}"


def _decimal(amount: Fraction) -> str:
    """``amount`` in decimal digits, exact for every amount that ``parse`` can read."""
    with localcontext(prec=60):
        text = f"{Decimal(amount.numerator) / Decimal(amount.denominator):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
