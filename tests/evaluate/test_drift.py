"""Divergence from the base in both directions, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_models import Models, broken, llama, random_tokens

from paretune.data.pairs import PairItem
from paretune.data.windows import Window
from paretune.evaluate.drift import Reference, that_fit
from paretune.evaluate.items import score
from paretune.evaluate.target_drift import TargetDrift

ROWS = [random_tokens(length, seed) for seed, length in enumerate([9, 5, 14])]
STARTS = [3, 1, 10]


def log_p(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].double().numpy()
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@pytest.mark.parametrize("rows", [1, 50])
def test_both_directions_and_the_likelihood_agree_with_numpy(rows):
    base, arms = llama(0, scale=2.0), [llama(1, scale=2.0), llama(2, scale=2.0)]
    reference = Reference(ROWS, STARTS, reverse=True)
    reference.attach(Models(base, rows=rows))
    drift = reference.score(Models(*arms, rows=rows))
    for k, arm in enumerate(arms):
        for n, (tokens, start) in enumerate(zip(ROWS, STARTS, strict=True)):
            p = log_p(base, tokens)[start - 1 : -1]
            q = log_p(arm, tokens)[start - 1 : -1]
            assert drift.forward[k, n] == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-5)
            assert drift.reverse[k, n] == pytest.approx((np.exp(q) * (q - p)).sum(), rel=1e-5)
            nats = -q[np.arange(len(q)), tokens[start:]].sum()
            assert drift.nats[k, n] == pytest.approx(nats, rel=1e-5)
    assert reference.scored.tolist() == [6.0, 4.0, 4.0]


def test_the_base_has_not_moved_and_a_broken_arm_has_no_distance():
    reference = Reference(ROWS, STARTS, reverse=True)
    reference.attach(Models(llama(0)))
    drift = reference.score(Models(llama(0), broken(1)))
    assert (drift.forward[0] == 0).all()
    assert (drift.reverse[0] == 0).all()
    assert np.isnan(drift.forward[1]).all()
    assert np.isnan(drift.reverse[1]).all()


def test_the_reverse_is_undefined_where_it_was_not_asked_for():
    reference = Reference(ROWS, STARTS)
    with pytest.raises(ValueError, match="attach"):
        reference.score(Models(llama(0)))
    reference.attach(Models(llama(0)))
    assert np.isnan(reference.score(Models(llama(1))).reverse).all()
    with pytest.raises(ValueError, match="base alone"):
        reference.attach(Models(llama(0), llama(1)))


def test_rows_are_spread_evenly_where_memory_is_short():
    assert that_fit([10] * 6, 100, most_bytes=60 * 400) == [0, 1, 2, 3, 4, 5]
    assert that_fit([10] * 6, 100, most_bytes=59 * 400) == [0, 2, 4]
    assert that_fit([10] * 6, 100, most_bytes=1) == [0]


def test_target_text_and_responses():
    windows = [Window(f"w{i}", "g", tokens, 20) for i, tokens in enumerate(ROWS)]
    pairs = [
        PairItem(f"p{i}", "g", tokens[:start], tokens[start:], "", 1)
        for i, (tokens, start) in enumerate(zip(ROWS, STARTS, strict=True))
    ]
    base, arm = Models(llama(0)), Models(llama(1))
    of_text = TargetDrift(windows, base, reverse=True).score(arm)
    assert [(k, v[0].unit, v[0].side) for k, v in of_text.items()] == [
        ("target/kl", "nats/token", "target"),
        ("target/reverse_kl", "nats/token", "target"),
    ]
    assert of_text["target/kl"][0].weight.tolist() == [8.0, 4.0, 13.0]
    of_responses = TargetDrift(pairs, base, reverse=False).score(arm)
    assert list(of_responses) == ["target/kl"]
    reference = Reference(ROWS, STARTS)
    reference.attach(base)
    np.testing.assert_allclose(of_responses["target/kl"][0].value, reference.score(arm).forward[0])
    assert score(of_responses["target/kl"][0]).value > 0
