"""Drawn tokens against the softmax they should follow, and against what else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluate_models import VOCABULARY, Models, llama, random_tokens, tokenizer
from scipy.stats import chisquare
from transformers import TopPLogitsWarper

from paretune.evaluate.decode.draw import Draws, entropies, exponentials, next_tokens
from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.generate import generate

N = 40_000
LOGITS = torch.randn(24, generator=torch.Generator().manual_seed(5)) * 1.5


def drawn(temperature: float, top_p: float = 1.0, *, seed: int = 0) -> np.ndarray:
    """How often each of 24 tokens is drawn in N rows whose keys differ."""
    keys = [GenerationRequest(np.array([1]), 1, seed=seed).key(sample) for sample in range(N)]
    draws = Draws(
        torch.full((N,), temperature),
        torch.full((N,), top_p),
        torch.tensor(keys, dtype=torch.int32),
        cuts=top_p < 1,
    )
    tokens, finite = next_tokens(LOGITS.expand(N, -1), draws, torch.zeros(N, dtype=torch.int32))
    assert finite.all()
    return np.bincount(tokens.numpy(), minlength=24)


def expected(temperature: float, top_p: float = 1.0) -> np.ndarray:
    """The softmax at a temperature, cut to its nucleus by transformers' own warper."""
    logits = (LOGITS / temperature)[None]
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return torch.softmax(logits.double(), -1)[0].numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5])
def test_tokens_are_drawn_from_the_softmax(temperature, top_p):
    p = expected(temperature, top_p)
    counts = drawn(temperature, top_p)
    assert (counts[p == 0] == 0).all()
    common = p * N >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(p[common], p[~common].sum()) * N
    kept = wanted > 0
    if kept.sum() > 1:
        assert chisquare(observed[kept], wanted[kept]).pvalue > 1e-4


def test_another_seed_draws_other_tokens():
    assert (drawn(1.0, seed=1) != drawn(1.0)).any()


def test_temperature_zero_takes_the_likeliest_beside_rows_that_draw():
    draws = Draws(torch.tensor([0.0, 5.0]), torch.ones(2), torch.zeros(2, dtype=torch.int32), False)
    tokens, _ = next_tokens(LOGITS.expand(2, -1), draws, torch.zeros(2, dtype=torch.int32))
    assert tokens[0] == LOGITS.argmax()


def test_random_numbers_are_exponential_and_differ_by_place():
    keys = torch.tensor([3, 3, 4], dtype=torch.int32)
    numbers = exponentials(keys, torch.tensor([0, 1, 0]), 50_000).double()
    for row in numbers:
        assert row.mean() == pytest.approx(1, abs=0.02)
        assert row.var() == pytest.approx(1, abs=0.05)
    correlation = np.corrcoef(numbers.numpy())
    assert np.abs(correlation - np.eye(3)).max() < 0.02


def test_entropy_is_that_of_the_softmax():
    p = torch.softmax(LOGITS.double(), -1)
    wanted = -(p * p.log()).sum()
    assert entropies(LOGITS[None])[0].item() == pytest.approx(wanted.item(), rel=1e-5)
    one_sided = torch.tensor([[0.0, float("-inf")]])
    assert entropies(one_sided)[0] == 0


def requests(samples: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(random_tokens(length, seed), 10, temperature=0.9, samples=samples)
        for seed, length in enumerate([9, 3, 14, 9, 1, 6])
    ]


def tokens(arms, asked, **settings):
    return [
        [[answer.tokens.tolist() for answer in samples] for samples in of_arm]
        for of_arm in generate(arms, asked, tokenizer(), end_of_text=[VOCABULARY], **settings)
    ]


def test_samples_do_not_depend_on_what_else_is_in_the_batch():
    models = (llama(0, scale=2.0), llama(1, scale=2.0))
    whole = tokens(Models(*models, rows=50), requests(4))
    assert len({str(answer) for of_arm in whole for s in of_arm for answer in s}) > 30
    for arm, model in enumerate(models):
        for index, request in enumerate(requests(4)):
            assert tokens(Models(model, rows=1), [request], row_tokens=9) == [[whole[arm][index]]]
    fewer = tokens(Models(models[0], rows=50), requests(2))[0]
    assert fewer == [samples[:2] for samples in whole[0]]


def test_samples_share_the_pass_over_their_prompt():
    arms = Models(llama(0), rows=50)
    got = tokens(arms, [replace(requests(1)[0], samples=7)])
    assert arms.passes == 10
    assert len(got[0][0]) == 7


def test_entropy_of_answers_is_that_of_the_model():
    model = llama(0, scale=2.0)
    request = requests(1)[2]
    [[[answer]]] = generate(Models(model), [request], tokenizer(), entropy=True)
    row = torch.from_numpy(np.concatenate([request.prompt, answer.tokens]))[None]
    with torch.no_grad():
        logits = model(row).logits[0, len(request.prompt) - 1 : -1]
    p = torch.softmax(logits.double(), -1)
    assert answer.entropy == pytest.approx(-(p * p.log()).sum(-1).numpy(), rel=1e-4)
