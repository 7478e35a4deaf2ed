"""Quantities are read exactly, written exactly, and turned into whole optimizer steps."""

from __future__ import annotations

from fractions import Fraction

import pytest

from paretune.study.quantity import Quantity


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("8M", 8_000_000, "tok"),
        ("8Mtok", 8_000_000, "tok"),
        ("1.5B", 1_500_000_000, "tok"),
        ("0.25B", 250_000_000, "tok"),
        ("32k", 32_000, "tok"),
        ("32K", 32_000, "tok"),
        ("20T", 20 * 10**12, "tok"),
        (4096, 4096, "tok"),
        (1e6, 1_000_000, "tok"),
        (1e16, 10**16, "tok"),
        ("1e6", 1_000_000, "tok"),
        (" 2 ep ", 2, "ep"),
        ("0.5ep", Fraction(1, 2), "ep"),
        ("500ba", 500, "ba"),
        ("1kba", 1000, "ba"),
    ],
)
def test_notation(text: object, amount: int | Fraction, unit: str) -> None:
    quantity = Quantity.parse(text)
    assert (quantity.amount, quantity.unit) == (amount, unit)


@pytest.mark.parametrize(
    "text", ["", "8Q", "8 M tokens", "-1M", "0", "0ep", "0.5", "1e999999999", True, None, [1], "ep"]
)
def test_what_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"quantity|above zero|less than one token"):
        Quantity.parse(text)


@pytest.mark.parametrize(
    "text", ["8M", "1.5B", "72.97M", "1234567", "1.234567891M", "999.999k", "2.125ep", "7ba", "20T"]
)
def test_written_quantities_read_back_exactly(text: str) -> None:
    quantity = Quantity.parse(text)
    assert Quantity.parse(str(quantity)) == quantity


@pytest.mark.parametrize(
    ("text", "shown"), [("8000k", "8M"), (1_234_567, "1234.567k"), (250_000_000, "250M"), (7, "7")]
)
def test_the_spelling_is_short(text: object, shown: str) -> None:
    assert str(Quantity.parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "steps"),
    # 1,000 tokens a step, 40 steps an epoch: a part of a step is a whole step
    [("1000", 1), ("1001", 2), ("8M", 8000), ("2ep", 80), ("0.51ep", 21), ("500ba", 500), ("1", 1)],
)
def test_steps(text: str, steps: int) -> None:
    assert Quantity.parse(text).steps(tokens_per_step=1000, steps_per_epoch=40) == steps


def test_the_papers_budgets_in_steps() -> None:
    """20B tokens at 192 x 4096 are 25,431 steps (Biderman et al., section 3)."""
    quantity = Quantity.parse("20B")
    assert quantity.steps(tokens_per_step=192 * 4096, steps_per_epoch=1) == 25_432  # 25,431.3
