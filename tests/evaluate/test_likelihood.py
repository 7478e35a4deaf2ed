"""Bits per byte against transformers' own loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from evaluate_models import Models, broken, llama, random_tokens

from paretune.data.pairs import PairItem
from paretune.data.windows import Window
from paretune.evaluate import batches, likelihood
from paretune.evaluate.items import score
from paretune.evaluate.likelihood import (
    negative_log_likelihood,
    responses_bits_per_byte,
    windows_bits_per_byte,
)


def window(length: int, seed: int) -> Window:
    return Window(f"w{seed}", f"g{seed}", random_tokens(length, seed), 3 * length + seed)


def loss(model, tokens: np.ndarray, first: int = 1) -> float:
    """Summed nats of tokens[first:] by model(labels=...), in float64, one row at a time."""
    ids = torch.from_numpy(tokens)[None]
    labels = ids.clone()
    labels[:, :first] = -100
    with torch.no_grad():
        return model.double()(input_ids=ids, labels=labels).loss.item() * (len(tokens) - first)


def test_windows_agree_with_transformers_loss():
    windows = [window(length, seed) for seed, length in enumerate([33, 9, 21, 33, 2, 14, 30])]
    arms = Models(llama(0), llama(1), llama(2))
    got = windows_bits_per_byte(arms, windows, "target/bits_per_byte")
    for k in range(3):
        model = llama(k)
        expected = [loss(model, w.tokens) / math.log(2) for w in windows]
        assert got[k].value == pytest.approx(expected, rel=2e-6)
        assert got[k].weight.tolist() == [w.n_bytes for w in windows]
        assert got[k].ids == [w.id for w in windows]
        assert got[k].groups == [w.group for w in windows]
        bits_per_byte = sum(expected) / sum(w.n_bytes for w in windows)
        assert score(got[k]).value == pytest.approx(bits_per_byte, rel=2e-6)
    assert (got[0].side, got[0].unit, got[0].higher_is_better) == ("target", "bits/byte", False)


def test_responses_count_the_response_and_its_end_only():
    pairs = [
        PairItem(f"p{i}", "g", random_tokens(p, i), random_tokens(r, 50 + i), "x" * r, r)
        for i, (p, r) in enumerate([(7, 3), (20, 1), (4, 9), (1, 2)])
    ]
    model = llama(0)
    [got] = responses_bits_per_byte(Models(llama(0)), pairs, "target/bits_per_byte")
    expected = [
        loss(model, np.concatenate([p.prompt, p.response]), len(p.prompt)) / math.log(2)
        for p in pairs
    ]
    assert got.value == pytest.approx(expected, rel=2e-6)
    assert got.weight.tolist() == [3, 1, 9, 2]


def test_right_padding_without_a_mask_changes_nothing():
    model = llama(0)
    row = torch.from_numpy(random_tokens(20, 0))[None]
    padded = torch.cat([row, torch.zeros(1, 13, dtype=torch.int64)], dim=1)
    mask = torch.cat([torch.ones_like(row), torch.zeros(1, 13, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        alone = model(row).logits
        unmasked = model(padded).logits[:, :20]
        masked = model(padded, attention_mask=mask).logits[:, :20]
    torch.testing.assert_close(unmasked, alone, rtol=0, atol=2e-5)
    torch.testing.assert_close(unmasked, masked, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_result_does_not_depend_on_the_batch(rows):
    tokens = [random_tokens(length, length) for length in (40, 5, 17, 17, 31, 8, 2, 26)]
    starts = [1, 2, 10, 1, 30, 7, 1, 3]
    together = negative_log_likelihood(
        Models(llama(0), llama(1), rows=rows), tokens, starts, row_tokens=16
    )
    alone = [
        negative_log_likelihood(Models(llama(0), llama(1)), [t], [s])
        for t, s in zip(tokens, starts, strict=True)
    ]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), rtol=3e-6)


def test_batches_hold_no_more_than_asked_and_every_row_once():
    lengths = [5, 100, 7, 30, 30, 64, 1, 12]
    arms = Models(llama(0), rows=2)
    made = list(batches.batches(lengths, arms, 32))
    assert sorted(i for batch in made for i in batch) == list(range(8))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 64 for b in made)
    assert made[0] == [1]
    assert len(made) < 6


def test_softmax_runs_in_slices_of_bounded_size(monkeypatch):
    """No float32 tensor [positions, V] beyond the slice, and slicing changes no bit."""
    tokens = [random_tokens(30, seed) for seed in range(4)]
    whole = negative_log_likelihood(Models(llama(0)), tokens, [1] * 4)
    sizes = []
    original = torch.nn.functional.cross_entropy

    def watch(logits, *args, **settings):
        sizes.append(logits.numel() * 4)
        return original(logits, *args, **settings)

    monkeypatch.setattr(batches, "SLICE_BYTES", {"cpu": 4 * 96 * 7})
    monkeypatch.setattr(likelihood.torch.nn.functional, "cross_entropy", watch)
    sliced = negative_log_likelihood(Models(llama(0)), tokens, [1] * 4)
    assert max(sizes) <= 4 * 96 * 7
    np.testing.assert_array_equal(whole, sliced)


def test_a_long_text_loses_no_precision():
    """Sums are float64: 3,000 equal terms give 3,000 times the float32 logarithm."""
    logits = torch.zeros(1, 1, 3000, 7)
    targets = torch.zeros(1, 3000, dtype=torch.int64)
    total = likelihood.scored_nats(logits, targets, torch.ones_like(targets, dtype=torch.bool))
    assert total.item() == pytest.approx(3000 * float(np.float32(math.log(7))), rel=1e-12)


def test_logits_in_bfloat16_are_raised_before_the_softmax():
    logits = torch.randn(1, 2, 9, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(18).view(2, 9)
    scored = torch.ones_like(targets, dtype=torch.bool)
    expected = -logits[0].double().log_softmax(-1).gather(2, targets[..., None])[..., 0].sum(1)
    got = likelihood.scored_nats(logits, targets, scored)[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_nan_in_one_arm_stays_there():
    windows = [window(12, seed) for seed in range(3)]
    good = windows_bits_per_byte(Models(llama(0), llama(2)), windows, "a/bits_per_byte")
    mixed = windows_bits_per_byte(Models(llama(0), broken(1), llama(2)), windows, "a/bits_per_byte")
    np.testing.assert_array_equal(mixed[0].value, good[0].value)
    np.testing.assert_array_equal(mixed[2].value, good[1].value)
    assert np.isnan(mixed[1].value).all()
    assert "not finite" in score(mixed[1]).reason


def test_a_row_without_context_is_refused():
    with pytest.raises(ValueError, match="context"):
        negative_log_likelihood(Models(llama(0)), [random_tokens(4, 0)], [0])
