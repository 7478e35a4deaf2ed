from __future__ import annotations

import re
from collections import Counter

import pytest

from paretune.data.arithmetic import LARGEST_COUNT, problems
from paretune.data.template import encode_pairs
from paretune.errors import UserError
from paretune.model.load import load_tokenizer
from paretune.study.config import Base

LESS = {"left", "fewer"}
"""Words of a story in which something goes away."""


def solve(prompt: str) -> str:
    """Work a problem out from its words, without knowing how it was made."""
    a, b = (int(number) for number in re.findall(r"\d+", prompt))
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    return f"{a}-{b}={a - b}" if words & LESS else f"{a}+{b}={a + b}"


def test_answers_are_right_and_of_one_digit_numbers() -> None:
    for pair in problems(3000, seed=1):
        assert pair.response == solve(pair.prompt), pair.prompt
        assert re.fullmatch(r"[2-9][+-][2-9]=[1-9]\d?", pair.response)


def test_guessing_the_commonest_answer_is_worth_little() -> None:
    answers = Counter(pair.response for pair in problems(4000, seed=0))
    assert len(answers) == 64 + 28, "every sum of two such numbers, and every positive difference"
    assert max(answers.values()) < 0.03 * 4000
    signs = Counter(answer[1] for answer in answers.elements())
    assert 0.45 < signs["+"] / 4000 < 0.55


def test_two_or_more_fit_a_row_of_the_pocket_study() -> None:
    tokenizer = load_tokenizer(Base(name="pocket"))
    pairs = list(problems(1000, seed=0))
    lengths = [len(p) + len(r) for p, r in encode_pairs(pairs, tokenizer, "plain")]
    assert max(lengths) <= 64


def test_problems_are_distinct_and_named_apart() -> None:
    rows = list(problems(5000, seed=0))
    assert len({pair.prompt for pair in rows}) == 5000
    assert len({pair.id for pair in rows}) == 5000


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
