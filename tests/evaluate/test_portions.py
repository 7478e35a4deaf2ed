"""Requests that are tokenized portion by portion give what all of them at once give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_models import llama, tokenizer

from paretune.errors import UserError
from paretune.evaluate.tasks import log_likelihood, portions
from paretune.evaluate.tasks.encode import Encoder
from paretune.evaluate.tasks.log_likelihood import LogLikelihoods
from paretune.evaluate.tasks.pack import Scored, pack
from paretune.evaluate.tasks.portions import Pair, Portion, made, parted
from paretune.model.trainee import ArmView, Trainee
from paretune.study.config import Base

ALL = 2**30
SIZES = [1, 300, ALL]
WORDS = ["cat", "dog", "The", "April", "clocks", "ß", "1984", "was", "(a, b)"]


def questions(count: int, seed: int = 0) -> list[Pair]:
    """Contexts with four continuations each, and a context that comes back later."""
    draw = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS, draw.integers(1, most)))

    contexts = [text(12) + draw.choice(["", " "]) for _ in range(count)]
    pairs = [(each, " " + text(5)) for each in [*contexts, contexts[0]] for _ in range(4)]
    return [*pairs, ("", text(4))]


def encoder(max_length: int = 4096) -> Encoder:
    return Encoder(tokenizer(), SimpleNamespace(max_position_embeddings=max_length))


@pytest.fixture(scope="module")
def view() -> ArmView:
    model = llama(0, vocabulary=288)
    return Trainee(model, [], [], [], None, torch.device("cpu"), Base(name="random")).view(None)


def by_number(found: list[Portion]) -> dict[int, tuple[list[int], int]]:
    requests = [each for portion in found for each in portion.tokenized()]
    numbers = [number for portion in found for number in portion.numbers]
    assert len(set(numbers)) == len(numbers) == len(requests)
    return {
        number: (request.tokens.tolist(), request.count)
        for number, request in zip(numbers, requests, strict=True)
    }


@pytest.mark.parametrize("size", SIZES)
def test_every_pair_is_in_one_portion(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "PORTION_CHARACTERS", size)
    pairs = questions(30)
    found = list(parted(pairs))
    assert sorted(index for portion in found for index in portion) == list(range(len(pairs)))
    of_portion = [{pairs[index][0] for index in portion} for portion in found]
    assert sum(map(len, of_portion)) == len({context for context, _ in pairs}), "contexts are whole"
    assert found == list(parted(pairs))
    characters = [sum(len(a + b) for a, b in map(pairs.__getitem__, each)) for each in found]
    assert all(each >= size for each in characters[:-1])
    assert (len(found) == 1) == (size == ALL)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_length", [4096, 24])
def test_tokens_are_those_of_all_at_once(
    size: int, max_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "PORTION_CHARACTERS", size)
    own, pairs = encoder(max_length), questions(30)
    expected, cut = own.pairs(pairs)
    assert (cut > 0) == (max_length == 24)
    found = own.portions(pairs, 100)
    bounds = [portion.longest for portion in found]
    assert by_number(found) == {
        100 + index: (request.tokens.tolist(), request.count)
        for index, request in enumerate(expected)
    }
    assert sum(portion.cut for portion in found) == cut
    exact = [portion.longest for portion in found]
    assert all(a <= b for a, b in zip(exact, bounds, strict=True))
    assert max(exact) == max(len(request.tokens) for request in expected)


def test_what_shares_its_examples_stands_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples drawn at random before each question: a portion computes one of them once more."""
    draw = np.random.default_rng(0)
    examples = ["\n".join(context for context, _ in questions(3, seed)) for seed in range(12)]
    asked = questions(60)
    firsts = draw.choice(examples, len(asked))
    pairs = [(f"{a} {b}", c) for a, (b, c) in zip(firsts, asked, strict=True)]

    def computed(size: int) -> tuple[int, int]:
        monkeypatch.setattr(portions, "PORTION_CHARACTERS", size)
        found = [portion.tokenized() for portion in encoder().portions(pairs)]
        return sum(len(packed.row.tokens) for packed in pack(found, 1000)), len(found)

    (at_once, one), (in_portions, many) = computed(ALL), computed(6000)
    assert one == 1 < 10 < many
    size = -(-len(pairs) // many)
    in_order = [encoder().pairs(pairs[i : i + size])[0] for i in range(0, len(pairs), size)]
    without = sum(len(packed.row.tokens) for packed in pack(in_order, 1000))
    assert in_portions - at_once < 0.1 * (without - at_once)


def test_what_may_not_fit_is_tokenized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "PORTION_CHARACTERS", 1)
    pairs = [("The cat", " sat"), ("The dog " * 40, " ran")]
    short, long = encoder(64).portions(pairs)
    assert (long.cut, long.longest) == (1, 65)
    bound = short.longest
    assert len(short.tokenized()[0].tokens) == short.longest < bound
    with pytest.raises(UserError, match="cannot be scored by a model with a context of 64"):
        encoder(64).portions([("The cat", " ran" * 200)])


class Watched:
    """Arms that tell what is asked of them, with a window of attention if need be."""

    def __init__(self, view: ArmView, window: int | None = None) -> None:
        self.view, self.window, self.told = view, window, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.view, name)

    def tree_refusal(self, longest: int) -> str | None:
        return "too long" if self.window and longest > self.window else None

    def tree(self, row: Any, tokens: int) -> Any:
        self.told.append("tree")
        return self.view.tree(row, tokens)

    def logits(self, *given: Any) -> Any:
        self.told.append("logits")
        return self.view.logits(*given)


@pytest.mark.parametrize("size", SIZES)
def test_answers_are_those_of_plain_rows_in_the_callers_order(
    size: int, view: ArmView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "PORTION_CHARACTERS", size)
    monkeypatch.setattr(log_likelihood, "CPU_CAPACITY", 200)
    pairs = questions(12)
    expected, _ = encoder().pairs(pairs)
    likelihoods = LogLikelihoods(encoder().portions(pairs))
    nats, greedy = likelihoods.score(view)
    for number, request in enumerate(expected):
        tokens = torch.from_numpy(request.tokens)[None]
        log_p = view.logits(tokens[:, :-1])[0, 0].double().log_softmax(-1)[-request.count :]
        own = log_p.gather(1, tokens[0, -request.count :, None]).sum()
        assert nats[0, number] == pytest.approx(float(own), abs=1e-4)
        exactly = (log_p.argmax(1) == tokens[0, -request.count :]).all()
        assert greedy[0, number] == bool(exactly)
    again = likelihoods.score(view)
    assert np.array_equal(again[0], nats)
    assert np.array_equal(LogLikelihoods(encoder().portions(pairs)).score(view)[0], nats)
    plain = LogLikelihoods(encoder().portions(pairs)).score(Watched(view, 1))
    np.testing.assert_allclose(plain[0], nats, atol=1e-4)
    assert np.array_equal(plain[1], greedy)


def test_the_model_works_before_all_is_tokenized(
    view: ArmView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "PORTION_CHARACTERS", 400)
    monkeypatch.setattr(log_likelihood, "CPU_CAPACITY", 60)
    arms, own = Watched(view), encoder()
    tokenize = own.pairs
    monkeypatch.setattr(own, "pairs", lambda given: arms.told.append("tokens") or tokenize(given))
    likelihoods = LogLikelihoods(own.portions(questions(12)))
    assert not arms.told
    likelihoods.score(arms)
    assert arms.told[:2] == ["tokens", "tree"]
    assert 2 < arms.told.count("tokens") < arms.told.count("tree")
    arms.told.clear()
    likelihoods.score(arms)
    assert set(arms.told) == {"tree"}, "tokens are kept"


def test_a_portion_that_fails_is_never_left_out(view: ArmView) -> None:
    likelihoods = LogLikelihoods(
        [made([Scored(np.array([1, 2, 3]), 1)]), *encoder().portions([("The cat", "")], 1)]
    )
    for _ in range(2):
        with pytest.raises(UserError, match="a continuation of 0 tokens cannot be scored"):
            likelihoods.score(view)


def test_a_window_is_held_against_tokens_not_against_texts(view: ArmView) -> None:
    pairs = questions(6)
    longest = max(len(request.tokens) for request in encoder().pairs(pairs)[0])
    expected = LogLikelihoods(encoder().portions(pairs)).score(view)[0]
    for window, asked in [(longest, "tree"), (longest - 1, "logits")]:
        arms = Watched(view, window)
        likelihoods = LogLikelihoods(encoder().portions(pairs))
        np.testing.assert_allclose(likelihoods.score(arms)[0], expected, atol=1e-4)
        assert set(arms.told) == {asked}
        assert likelihoods.refusal(arms) == (None if asked == "tree" else "too long")


def test_a_tokenizer_that_exceeds_the_bound_does_not_exceed_a_window(
    view: ArmView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretune.evaluate.tasks.encode.most_tokens", lambda pairs: 3)
    pairs, arms = questions(6), Watched(view, 10)
    likelihoods = LogLikelihoods(encoder().portions(pairs))
    expected = LogLikelihoods([made(encoder().pairs(pairs)[0])]).score(view)[0]
    np.testing.assert_allclose(likelihoods.score(arms)[0], expected, atol=1e-4)
    assert arms.told[-1] == "logits"
    assert likelihoods.refusal(arms) == "too long"
