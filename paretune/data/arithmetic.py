"""Generated arithmetic word problems: short stories whose answer is one small number."""

from __future__ import annotations

import random
from collections.abc import Iterator

from paretune.data.rows import Pair
from paretune.errors import UserError

NAMES = [
    "Tom",
    "Ann",
    "Ben",
    "Mary",
    "Jack",
    "Lucy",
    "Sam",
    "Kate",
    "Peter",
    "Jane",
    "Harry",
    "Emma",
    "Will",
    "Rose",
    "Fred",
    "Alice",
    "Joe",
    "Grace",
    "Ned",
    "Ruth",
    "Hugh",
    "Clara",
    "Mark",
    "Nell",
]
THINGS = [
    "apples",
    "books",
    "pens",
    "cups",
    "hats",
    "eggs",
    "coins",
    "stones",
    "cards",
    "keys",
    "boxes",
    "plums",
    "shells",
    "nuts",
    "cakes",
    "stamps",
    "ribbons",
    "candles",
    "pears",
    "buttons",
]
PLACES = ["table", "shelf", "cart", "bench", "boat", "wall"]

SUMS = (
    "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?",
    "There are {a} {t} on the {p} and {b} {t} in the box. How many {t} are there?",
    "{n} has {a} {t} and {m} has {b} {t}. How many {t} do they have together?",
    "{n} found {a} {t} and then {b} {t}. How many {t} did {n} find?",
    "{n} put {a} {t} on the {p}. {m} put {b} {t} there too. How many {t} are on the {p}?",
    "{n} bought {a} {t} and {b} {t} more. How many {t} did {n} buy?",
)
DIFFERENCES = (
    "{n} has {a} {t}. {n} gives {b} to {m}. How many {t} does {n} have left?",
    "There are {a} {t} on the {p}. {n} takes {b}. How many {t} are left?",
    "{n} had {a} {t} and lost {b}. How many {t} are left?",
    "{n} has {a} {t}. {m} has {b} fewer. How many {t} does {m} have?",
    "{n} had {a} {t} and sold {b} of them. How many {t} are left?",
)
PRODUCTS = (
    "{n} has {a} boxes with {b} {t} in each. How many {t} does {n} have?",
    "There are {a} rows of {b} {t} on the {p}. How many {t} are there?",
    "{n} buys {b} {t} on each of {a} days. How many {t} does {n} buy?",
    "{a} friends of {n} bring {b} {t} each. How many {t} do they bring?",
)
LARGEST_COUNT = 200_000
"""Problems that can be drawn before distinct ones become rare."""


def problems(count: int, seed: int) -> Iterator[Pair]:
    """Yield ``count`` problems with distinct prompts, the same for a seed on every machine.

    Four in nine are sums of two digits up to 9, two differences, two sums with a number from 10 to
    20, one a product of numbers up to 5: few enough facts for a small model to meet each many times
    in 100,000 tokens. The response is the bare number.

    Raises:
        UserError: more problems than there are distinct ones.
    """
    check_count(count)
    draw = _Draw(seed)
    seen: set[str] = set()
    while len(seen) < count:
        prompt, answer = _problem(draw)
        if prompt in seen:
            continue
        name = f"arithmetic-{seed}-{len(seen):06d}"
        seen.add(prompt)
        yield Pair(name, name, prompt, str(answer))


def check_count(count: int) -> None:
    """Raise UserError when ``count`` distinct problems cannot be drawn."""
    if count > LARGEST_COUNT:
        raise UserError(f"arithmetic: count {count} is too many; at most {LARGEST_COUNT}")


class _Draw:
    """Random choices by `random.Random.random` alone, whose stream Python guarantees."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def of(self, values: tuple[str, ...] | list[str]) -> str:
        """One of the values."""
        return values[self.between(0, len(values) - 1)]


def _problem(draw: _Draw) -> tuple[str, int]:
    kind = draw.between(1, 9)
    if kind <= 4:
        a, b = draw.between(2, 9), draw.between(2, 9)
        story, answer = draw.of(SUMS), a + b
    elif kind <= 6:
        b = draw.between(2, 9)
        a = b + draw.between(1, 9)
        story, answer = draw.of(DIFFERENCES), a - b
    elif kind <= 8:
        a, b = draw.between(10, 20), draw.between(2, 9)
        story, answer = draw.of(SUMS), a + b
    else:
        a, b = draw.between(2, 5), draw.between(2, 5)
        story, answer = draw.of(PRODUCTS), a * b
    name = draw.of(NAMES)
    friend = name
    while friend == name:
        friend = draw.of(NAMES)
    things, place = draw.of(THINGS), draw.of(PLACES)
    return story.format(n=name, m=friend, t=things, p=place, a=a, b=b), answer
