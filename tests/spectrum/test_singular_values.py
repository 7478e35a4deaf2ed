"""Singular values and their measures against numpy's float64 SVD."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paretune.spectrum.matrices import Matrix
from paretune.spectrum.measures import effective_rank, frobenius, rank_for, row, stable_rank
from paretune.spectrum.singular import (
    ACCURACY,
    factor_values,
    from_gram,
    gram,
    gram_floor,
    singular_values,
)

SHAPES = [(24, 24), (40, 17), (17, 40), (3, 90), (90, 3), (64, 171), (171, 64), (128, 130)]
Array = NDArray[np.float64]


def structured(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[tuple[str, Array]]:
    """One matrix of each kind that spectra are asked of."""
    m, n = shape
    small = min(shape)
    noise = rng.standard_normal(shape)
    k = max(1, small // 4)
    low = rng.standard_normal((m, k)) @ rng.standard_normal((k, n))
    left, _, right = np.linalg.svd(noise, full_matrices=False)
    yield "random", noise
    yield "low rank plus noise", low + 1e-3 * noise
    yield "rank-deficient", low
    yield "ill-conditioned", (left * np.logspace(0, -12, small)) @ right
    nearly = np.ones(small)
    nearly[-1] = 1e-10
    yield "near-singular", (left * nearly) @ right
    yield "powers", (left * np.arange(1, small + 1) ** -1.0) @ right
    yield "a row of another scale", noise * np.where(np.arange(m) == 0, 1e4, 1.0)[:, None]


def cases() -> Iterator[tuple[str, torch.Tensor]]:
    """Two hundred matrices: kinds, shapes, seeds, and what they are stored in."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for shape in SHAPES:
            for name, matrix in structured(rng, shape):
                dtype = (torch.float64, torch.bfloat16, torch.float32, torch.float64)[seed]
                yield f"{name} {shape} {dtype}", torch.from_numpy(matrix).to(dtype)


def test_two_hundred_matrices_against_numpy() -> None:
    count, routes = 0, set()
    for name, matrix in cases():
        count += 1
        true = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        found = singular_values(matrix)
        routes.add(found.route)
        ours = found.values.numpy()
        assert np.abs(ours - true).max() <= ACCURACY * true[0], name
        assert rank_for(ours) == reference_rank(true), name
        for measure, expected in (
            (effective_rank(ours), reference_effective_rank(true)),
            (stable_rank(ours), (true**2).sum() / true[0] ** 2),
            (frobenius(ours), np.linalg.norm(matrix.double().numpy())),
            (float(ours[0]), np.linalg.norm(matrix.double().numpy(), 2)),
        ):
            assert measure == pytest.approx(expected, rel=1e-6), name
    assert count >= 200
    assert routes == {"gram", "svd"}


def reference_rank(values: Array) -> int:
    """The definition, term by term."""
    total = (values**2).sum()
    return next(k for k in range(1, len(values) + 1) if (values[:k] ** 2).sum() >= 0.9 * total)


def reference_effective_rank(values: Array) -> float:
    """Roy and Vetterli (2007), equations 2 to 4."""
    shares = values / values.sum()
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 0)))


def test_gram_floor_bounds_the_error_of_the_gram_route() -> None:
    """Also where the exact route would be taken: no value is off by more than the floor says."""
    for name, matrix in cases():
        true = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        found = from_gram(gram(matrix))
        assert np.abs(found.values.numpy() - true).max() <= found.floor, name


def test_values_that_the_gram_route_loses_are_found_and_taken_exactly() -> None:
    left, _, right = np.linalg.svd(np.random.default_rng(1).standard_normal((50, 80)), False)
    true = np.logspace(0, -12, 50)
    matrix = torch.from_numpy((left * true) @ right)
    lossy = from_gram(gram(matrix))
    assert lossy.unresolved >= int((true < gram_floor(50)).sum())
    exact = singular_values(matrix)
    assert exact.route == "svd"
    assert exact.unresolved == 0
    assert exact.values.numpy() == pytest.approx(true, rel=1e-3)


def test_gram_of_a_difference_and_in_slices() -> None:
    """Slices and blocks change nothing; the difference is taken in float64."""
    rng = np.random.default_rng(0)
    for shape in ((300, 5000), (5000, 300)):
        base = torch.from_numpy(rng.standard_normal(shape)).bfloat16()
        tuned = (base.float() + 1e-3 * torch.randn(shape)).bfloat16()
        delta = tuned.double().numpy() - base.double().numpy()
        found = from_gram(gram(tuned, base)).values.numpy()
        true = np.linalg.svd(delta, compute_uv=False)
        assert found == pytest.approx(true, abs=1e-6 * true[0])


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factor_route_equals_the_dense_one(rank: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rank)
    B = torch.randn(5, 96, rank, generator=generator).to(dtype)
    A = torch.randn(5, rank, 40, generator=generator).to(dtype)
    gammas = [0.5, 1.0, 2.0, 3.7, 1e-4]
    for i, found in enumerate(factor_values(B, A, gammas)):
        dense = gammas[i] * B[i].double().numpy() @ A[i].double().numpy()
        true = np.linalg.svd(dense, compute_uv=False)
        assert len(found.values) == rank
        assert found.values.numpy() == pytest.approx(true[:rank], abs=1e-12 * true[0])


def test_an_untrained_matrix_has_no_rank() -> None:
    """A zero update is not given a rank, nor a division by nothing."""
    matrix = Matrix("m", "m", 0, "q_proj", "attention", 8, 6)
    zero = singular_values(torch.zeros(8, 6))
    base = singular_values(torch.eye(8, 6))
    found = row(matrix, zero, base, base)
    assert (found["rank90"], found["effective_rank"], found["stable_rank"]) == (None, None, None)
    assert (found["frobenius"], found["frobenius_relative"], found["spectrum_mad"]) == (0, 0, 0)


def test_measures_in_closed_form() -> None:
    assert rank_for(np.array([3.0, 1.0])) == 1  # 9 of 10: exactly 90%
    assert rank_for(np.array([3.0, 1.0]), share=0.91) == 2
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert stable_rank(np.array([2.0, 1.0, 1.0])) == pytest.approx(1.5)
