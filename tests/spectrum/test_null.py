"""The null model: closed forms against quadrature, and against sampled matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate

from paretune.spectrum.measures import effective_rank, rank_for, stable_rank
from paretune.spectrum.null import above, angle_of_variance, null, signal_count

TEN_SHAPES = [
    (64, 64), (128, 128), (256, 256), (400, 400), (64, 256),
    (256, 64), (192, 512), (512, 192), (100, 1000), (300, 800),
]  # fmt: skip


@pytest.mark.parametrize("beta", [1.0, 0.372, 0.1, 2e-3, 5e-4])
def test_closed_form_is_the_integral_of_the_law(beta: float) -> None:
    """Against the density as Marchenko and Pastur (1967) give it, integrated by scipy."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(x: float) -> float:
        return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * beta * x)

    theta = angle_of_variance(0.9)
    x = 1 + beta + 2 * math.sqrt(beta) * math.cos(theta)
    share, _ = scipy.integrate.quad(lambda v: v * density(v), x, high)
    count, _ = scipy.integrate.quad(density, x, high)
    assert share == pytest.approx(0.9, abs=1e-6)
    assert above(theta, beta) == pytest.approx(count, abs=1e-6)
    assert above(math.pi, beta) == pytest.approx(1, abs=1e-9)


def test_the_papers_shapes() -> None:
    """Attention and MLP matrices of Llama-2-7B: shape alone gives MLP the larger rank."""
    assert null(4096, 4096).rank90 == pytest.approx(2089, abs=1)
    assert null(11008, 4096).rank90 == pytest.approx(2917, abs=1)


@pytest.mark.parametrize("shape", TEN_SHAPES)
def test_gaussian_updates_have_the_rank_of_the_null(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    samples = [np.linalg.svd(rng.standard_normal(shape), compute_uv=False) for _ in range(6)]
    law = null(*shape)
    ranks = [rank_for(values) or 0 for values in samples]
    assert np.mean(ranks) / law.rank90 == pytest.approx(1, abs=0.02)
    effective = np.mean([effective_rank(values) or 0 for values in samples])
    assert effective / law.effective_rank == pytest.approx(1, abs=0.01)
    stable = np.mean([stable_rank(values) or 0 for values in samples])
    assert stable / law.stable_rank == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(128, 128), (192, 512), (512, 192)])
@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_a_planted_signal_is_found_at_its_rank(shape: tuple[int, int], k: int) -> None:
    rng = np.random.default_rng(k)
    left = np.linalg.qr(rng.standard_normal((shape[0], max(k, 1))))[0][:, :k]
    right = np.linalg.qr(rng.standard_normal((shape[1], max(k, 1))))[0][:, :k]
    strength = 3 * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    planted = strength * left @ right.T + rng.standard_normal(shape)
    values = np.linalg.svd(planted, compute_uv=False)
    assert signal_count(values, *shape) == k


def test_pure_noise_rarely_shows_a_direction() -> None:
    """The threshold is a 99% quantile: about one false direction in a hundred matrices."""
    rng = np.random.default_rng(3)
    found = sum(
        signal_count(np.linalg.svd(rng.standard_normal((60, 150)), compute_uv=False), 60, 150)
        for _ in range(300)
    )
    assert found <= 12
