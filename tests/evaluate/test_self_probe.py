"""The self-probe: samples follow the base, divergence agrees with numpy, the base stays at 0."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from evaluate_models import Models, broken, llama, random_tokens, tokenizer
from scipy.stats import chisquare

from paretune.data.windows import Window
from paretune.errors import UserError
from paretune.evaluate import batches
from paretune.evaluate.items import score
from paretune.evaluate.self_probe import Probe, sample
from paretune.study.config import SelfProbe


def small(seed: int):
    return llama(seed, vocabulary=288)


def probe_of(base, *, count=5, length=20, row_tokens=512) -> Probe:
    windows = [
        Window(f"s{i}", f"s{i}", np.concatenate([[0], random_tokens(length, i)]), 40 + i)
        for i in range(count)
    ]
    probe = Probe(windows, row_tokens=row_tokens)
    probe.attach(base)
    return probe


def float64_log_p(model, tokens: np.ndarray) -> np.ndarray:
    """[S, V] log-probabilities by numpy in float64 from the model's float32 logits."""
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens[:-1])[None]).logits[0].double().numpy()
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@pytest.mark.parametrize("rows", [1, 3])
def test_divergence_and_bits_agree_with_numpy(rows):
    base = llama(0)
    probe = probe_of(Models(base, rows=rows), row_tokens=32)
    arms = [llama(1), llama(2), llama(3)]
    scored = probe.score(Models(*arms, rows=rows))
    for (kl, bits), arm in zip(scored, arms, strict=True):
        for index, window in enumerate(probe.windows):
            p, q = float64_log_p(base, window.tokens), float64_log_p(arm, window.tokens)
            assert kl.value[index] == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-5)
            nats = -q[np.arange(20), window.tokens[1:]].sum()
            assert bits.value[index] == pytest.approx(nats / math.log(2), rel=1e-5)
        assert kl.weight.tolist() == [20.0] * 5
        assert bits.weight.tolist() == [40.0, 41.0, 42.0, 43.0, 44.0]
        assert (kl.metric, kl.unit, kl.side) == ("self_probe/kl", "nats/token", "source")
        assert score(kl).value == pytest.approx(kl.value.sum() / 100)


def test_a_small_divergence_keeps_its_precision():
    base, arm = llama(0), llama(0)
    with torch.no_grad():
        arm.lm_head.weight.add_(
            1e-3 * torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
        )
    probe = probe_of(Models(base))
    [(kl, _)] = probe.score(Models(arm))
    expected = []
    for window in probe.windows:
        p, q = float64_log_p(base, window.tokens), float64_log_p(arm, window.tokens)
        expected.append((np.exp(p) * (p - q)).sum() / 20)
    assert max(expected) < 1e-4
    np.testing.assert_allclose(kl.value / 20, expected, atol=1e-7)


def test_the_base_diverges_by_exactly_nothing(monkeypatch):
    monkeypatch.setattr(batches, "SLICE_BYTES", {"cpu": 4 * 96 * 7})
    base = llama(0)
    probe = probe_of(Models(base))
    for kl, _ in probe.score(Models(base)):
        assert kl.value.tolist() == [0.0] * 5
        assert score(kl).stderr == 0.0


def test_a_token_the_base_never_writes_adds_nothing():
    """A vocabulary entry masked with -inf in base and arm gives no NaN."""
    base, arm = llama(0), llama(1)

    class Masked(Models):
        def logits(self, *args, **settings):
            out = super().logits(*args, **settings)
            out[..., 95] = -math.inf
            return out

    windows = [Window("s", "s", np.array([0, 5, 7, 9]), 4)]
    probe = Probe(windows)
    probe.attach(Masked(base))
    [(kl, _)] = probe.score(Masked(arm))
    with torch.no_grad():
        p, q = (
            m(torch.tensor([[0, 5, 7]])).logits[0, :, :95].double().log_softmax(-1)
            for m in (base, arm)
        )
    assert kl.value[0] == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)


def test_nan_in_one_arm_stays_there():
    probe = probe_of(Models(llama(0)))
    alone = probe.score(Models(llama(2)))
    mixed = probe.score(Models(broken(1), llama(2)))
    for one, other in zip(mixed[1], alone[0], strict=True):
        np.testing.assert_array_equal(one.value, other.value)
    assert all(np.isnan(items.value).all() for items in mixed[0])


def test_arms_before_the_base_are_a_mistake():
    with pytest.raises(ValueError, match="attach"):
        Probe([Window("s", "s", np.array([0, 1, 2]), 2)]).score(Models(llama(0)))
    with pytest.raises(ValueError, match="2 arms"):
        probe_of(Models(llama(0), llama(1)))


def test_a_seed_gives_one_sample_in_any_batch():
    base = llama(0)
    one = sample(Models(base, rows=100), 0, samples=12, tokens=15, seed=3)
    np.testing.assert_array_equal(
        one, sample(Models(base, rows=100), 0, samples=12, tokens=15, seed=3)
    )
    in_parts = sample(Models(base, rows=1), 0, samples=12, tokens=15, seed=3, row_tokens=15)
    np.testing.assert_array_equal(one, in_parts)
    assert one.shape == (12, 16)
    assert (one[:, 0] == 0).all()
    assert (one != sample(Models(base), 0, samples=12, tokens=15, seed=4)).any()


def test_tokens_follow_the_base_at_temperature_one():
    """First tokens against softmax, and second tokens against softmax given the first."""
    base = llama(5, scale=20.0)
    drawn = sample(Models(base, rows=64), 0, samples=6000, tokens=2, seed=0)
    with torch.no_grad():
        first = base(torch.tensor([[0]])).logits[0, -1].double().softmax(-1).numpy()
    assert _p_value(drawn[:, 1], first) > 0.01
    cooler = first**1.2 / (first**1.2).sum()
    assert _p_value(drawn[:, 1], cooler) < 1e-6, "the test should tell temperatures apart"
    common = int(np.bincount(drawn[:, 1]).argmax())
    with torch.no_grad():
        second = base(torch.tensor([[0, common]])).logits[0, -1].double().softmax(-1).numpy()
    assert _p_value(drawn[drawn[:, 1] == common, 2], second) > 0.01


def _p_value(tokens: np.ndarray, probability: np.ndarray) -> float:
    """Chi-square test; tokens expected fewer than 5 times are counted as one."""
    counts = np.bincount(tokens, minlength=len(probability))
    expected = probability * len(tokens)
    rare = expected < 5
    bins = [~rare] if not rare.any() else [~rare, rare]
    observed = np.concatenate([counts[bins[0]], *([counts[b].sum()] for b in bins[1:])])
    wanted = np.concatenate([expected[bins[0]], *([expected[b].sum()] for b in bins[1:])])
    return float(chisquare(observed, wanted).pvalue)


def test_sampling_goes_on_after_the_end_of_a_text():
    base = llama(0)
    with torch.no_grad():
        base.lm_head.weight.zero_()
    drawn = sample(Models(base), 0, samples=40, tokens=60, seed=0)
    inside = (drawn[:, 1:-1] == 0).any(1)
    assert inside.any()
    assert all((row[2:] != 0).any() for row in drawn[inside])


def test_samples_are_kept_and_read_back(tmp_path):
    path = tmp_path / "base" / "probe.jsonl"
    settings = SelfProbe(samples=6, tokens=16, seed=1)
    first = Probe.of(Models(small(0)), settings, tokenizer(), path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6
    for row, window in zip(rows, first.windows, strict=True):
        assert row["text"] == tokenizer().decode(row["tokens"][1:], skip_special_tokens=True)
        assert row["n_bytes"] == len(row["text"].encode()) == window.n_bytes
        assert row["tokens"] == window.tokens.tolist()
        assert len(row["tokens"]) == 17
    before = path.read_bytes()
    again = Probe.of(Models(small(9)), settings, tokenizer(), path)
    assert path.read_bytes() == before
    for one, other in zip(first.windows, again.windows, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize("other", [{"samples": 5}, {"tokens": 17}, {"seed": 2}])
def test_samples_of_other_settings_are_refused(tmp_path, other):
    path = tmp_path / "probe.jsonl"
    settings = {"samples": 6, "tokens": 16, "seed": 1}
    Probe.of(Models(small(0)), SelfProbe(**settings), tokenizer(), path)
    with pytest.raises(UserError, match=r"probe\.jsonl.*other settings"):
        Probe.of(Models(small(0)), SelfProbe(**{**settings, **other}), tokenizer(), path)
