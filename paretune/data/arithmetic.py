"""Generated arithmetic word problems: short stories, answered by one line of arithmetic."""

from __future__ import annotations

import random
from collections.abc import Iterator

from paretune.data.rows import Pair
from paretune.errors import UserError

NAMES = (
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
    "Rose",
    "Will",
    "Ruth",
    "Mark",
    "Grace",
)
THINGS = (
    "books",
    "cards",
    "boxes",
    "cups",
    "stones",
    "cakes",
    "keys",
    "hats",
    "eggs",
    "coins",
    "pens",
    "nuts",
    "apples",
    "shells",
    "plums",
    "pears",
)
PLACES = ("table", "shelf", "bench", "boat", "wall")

SUMS = (
    "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?",
    "There are {a} {t} on the {p} and {b} in the box. How many {t} are there?",
    "{n} has {a} {t} and {m} has {b}. How many {t} do they have together?",
    "{n} found {a} {t} and then {b} more. How many {t} did {n} find?",
    "{n} put {a} {t} on the {p}. {m} put {b} there too. How many {t} are there?",
)
DIFFERENCES = (
    "{n} has {a} {t}. {n} gives {b} to {m}. How many {t} does {n} have left?",
    "There are {a} {t} on the {p}. {n} takes {b}. How many {t} are left?",
    "{n} had {a} {t} and lost {b}. How many {t} are left?",
    "{n} has {a} {t}. {m} has {b} fewer. How many {t} does {m} have?",
    "{n} had {a} {t} and sold {b} of them. How many {t} are left?",
)
LARGEST_COUNT = 100_000
"""Problems that can be drawn before distinct ones become rare."""


def problems(count: int, seed: int) -> Iterator[Pair]:
    """Yield ``count`` problems with distinct prompts, the same for a seed on every machine.

    Half are sums, half differences of two numbers from 2 to 9: so few facts that a small model
    meets each many times in 100,000 tokens. The facts of a held-out problem are known from other
    stories; what has to be learned is to read the story too.

    The response is the whole calculation, such as ``3+4=7``: guessing the commonest one is right
    once in fifty times, where guessing the commonest bare result would be right once in eight.

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
        yield Pair(name, name, prompt, answer)


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

    def of(self, values: tuple[str, ...]) -> str:
        """One of the values."""
        return values[self.between(0, len(values) - 1)]


def _problem(draw: _Draw) -> tuple[str, str]:
    """A prompt and its response."""
    # Numbers begin at 2, because "1 books" is no English
    a, b = draw.between(2, 9), draw.between(2, 9)
    if draw.between(0, 1):
        story, answer = draw.of(SUMS), f"{a}+{b}={a + b}"
    else:
        while a == b:
            b = draw.between(2, 9)
        a, b = max(a, b), min(a, b)
        story, answer = draw.of(DIFFERENCES), f"{a}-{b}={a - b}"
    name = draw.of(NAMES)
    friend = name
    while friend == name:
        friend = draw.of(NAMES)
    things, place = draw.of(THINGS), draw.of(PLACES)
    return story.format(n=name, m=friend, t=things, p=place, a=a, b=b), answer
