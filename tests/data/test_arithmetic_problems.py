from __future__ import annotations

import re

import pytest

from paretune.data.arithmetic import LARGEST_COUNT, problems
from paretune.errors import UserError

LESS = ("left", "fewer")
TIMES = ("each", "rows")


def solve(prompt: str) -> int:
    """Work a problem out from its words, without knowing how it was made."""
    a, b = (int(number) for number in re.findall(r"\d+", prompt))
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    if words & set(TIMES):
        return a * b
    return a - b if words & set(LESS) else a + b


def test_answers_are_right_bare_and_small() -> None:
    for pair in problems(3000, seed=1):
        assert re.fullmatch(r"\d{1,2}", pair.response)
        assert int(pair.response) == solve(pair.prompt), pair.prompt


def test_problems_are_distinct_and_named_apart() -> None:
    rows = list(problems(5000, seed=0))
    assert len({pair.prompt for pair in rows}) == 5000
    assert len({pair.id for pair in rows}) == 5000
    assert len({pair.response for pair in rows}) > 20


def test_a_seed_gives_its_own_problems_and_a_smaller_count_a_beginning() -> None:
    assert list(problems(100, seed=3)) == list(problems(400, seed=3))[:100]
    ours, others = ({pair.prompt for pair in problems(100, seed=seed)} for seed in (3, 4))
    assert len(ours & others) < 10


def test_names_in_a_problem_differ() -> None:
    for pair in problems(500, seed=2):
        names = re.findall(r"\b[A-Z][a-z]+\b", re.sub(r"How|There", "", pair.prompt))
        assert len(set(names)) <= 2


def test_more_problems_than_there_are_is_a_user_error() -> None:
    with pytest.raises(UserError, match="is too many; at most"):
        list(problems(LARGEST_COUNT + 1, seed=0))
