"""Angles and intruder dimensions: by hand, against scipy, and with a control."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from paretune.spectrum.directions import BaseDirections, principal_angles, scrambled
from paretune.spectrum.matrices import Matrix


def matrix(d_out: int, d_in: int) -> Matrix:
    """A matrix of this shape."""
    return Matrix("layers.0.mlp.w", "layers.0.mlp.w", 0, "w", "mlp", d_out, d_in)


def published_count(W0: np.ndarray, W: np.ndarray, k: int, threshold: float) -> int:
    """Shuttleworth et al. (2024), algorithm 1: both SVDs, all pretrained left vectors."""
    U0 = np.linalg.svd(W0, full_matrices=False)[0]
    U = np.linalg.svd(W, full_matrices=False)[0]
    return int((np.abs(U0.T @ U[:, :k]).max(axis=0) < threshold).sum())


def test_a_case_worked_by_hand() -> None:
    """W0 = diag(4, 3, 2, 1); the update puts 5 on a direction with four equal parts.

    y = (1, 1, 1, 1) / 2 has the cosine 1/2 with every pretrained left vector e_i. W's first left
    vector is near y: below a threshold of 0.9 an intruder, above one of 0.3 not.
    """
    W0 = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    y = torch.full((4, 1), 0.5)
    W = W0 + 50 * y @ y.T
    directions = BaseDirections(matrix(4, 4), W0)
    strict, _, _ = directions.measures(W, 1, 0.9)
    loose, _, _ = directions.measures(W, 1, 0.3)
    assert (strict["intruders"], loose["intruders"]) == (1, 0)
    first = np.linalg.svd(W.numpy())[1][0]
    assert strict["intruder_energy"] == pytest.approx(
        first**2 / np.linalg.norm(W.numpy()) ** 2, rel=1e-5
    )


@pytest.mark.parametrize("shape", [(40, 40), (40, 100), (100, 40)])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_count_agrees_with_the_published_definition(
    shape: tuple[int, int], threshold: float
) -> None:
    rng = np.random.default_rng(5)
    W0 = rng.standard_normal(shape)
    for scale in (0.05, 0.3, 1.0):
        low = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
        W = W0 + scale * low
        found, _, _ = BaseDirections(matrix(*shape), torch.from_numpy(W0)).measures(
            torch.from_numpy(W), 10, threshold
        )
        assert found["intruders"] == published_count(W0, W, 10, threshold)


def test_planted_intruders_and_the_control() -> None:
    """Two strong random directions are intruders, and so is each of the control's.

    The control has the same singular values in random directions, so it says what directions
    chosen by nobody would show. Where the update only strengthens W0's own directions there is no
    intruder, and the control shows one: the count is about directions, not about size.
    """
    rng = np.random.default_rng(0)
    W0 = rng.standard_normal((200, 300)) / 20
    U, _, Vt = np.linalg.svd(W0, full_matrices=False)
    left, right = (np.linalg.qr(rng.standard_normal((d, 2)))[0] for d in (200, 300))
    planted = W0 + 5 * left @ right.T
    own = W0 + 5 * U[:, :2] @ Vt[:2]
    directions = BaseDirections(matrix(200, 300), torch.from_numpy(W0))
    found, _, _ = directions.measures(torch.from_numpy(planted), 10, 0.5)
    assert (found["intruders"], found["control_intruders"]) == (2, 2)
    values = np.linalg.svd(planted, compute_uv=False)
    share = (values[:2] ** 2).sum() / (values**2).sum()
    assert found["intruder_energy"] == pytest.approx(share, rel=1e-9)
    strengthened, _, _ = directions.measures(torch.from_numpy(own), 10, 0.5)
    assert (strengthened["intruders"], strengthened["control_intruders"]) == (0, 2)
    assert strengthened["delta_overlap_left"] > 5 * strengthened["null_overlap_left"] / 2


def test_share_outside_and_overlap_of_noise_equal_their_nulls() -> None:
    rng = np.random.default_rng(2)
    W0 = rng.standard_normal((120, 240))
    W = W0 + 1e-3 * rng.standard_normal((120, 240))
    found, tuned, delta = BaseDirections(matrix(120, 240), torch.from_numpy(W0)).measures(
        torch.from_numpy(W), 10, 0.5
    )
    assert found["outside"] == pytest.approx(found["null_outside"], abs=0.03)
    assert found["delta_overlap_left"] == pytest.approx(found["null_overlap_left"], abs=0.05)
    assert tuned.values.numpy() == pytest.approx(np.linalg.svd(W, compute_uv=False), rel=1e-9)
    true = np.linalg.svd(W - W0, compute_uv=False)
    assert delta.values.numpy() == pytest.approx(true, abs=1e-6 * true[0])


def test_outside_is_zero_for_an_update_within_w0() -> None:
    rng = np.random.default_rng(2)
    W0 = rng.standard_normal((60, 90))
    U, _, Vt = np.linalg.svd(W0, full_matrices=False)
    W = W0 + 0.1 * U[:, :5] @ Vt[:5]
    found, _, _ = BaseDirections(matrix(60, 90), torch.from_numpy(W0)).measures(
        torch.from_numpy(W), 5, 0.5
    )
    assert found["outside"] == pytest.approx(0, abs=1e-9)
    assert found["tuned_angle_left"] < 45


def test_principal_angles_against_scipy() -> None:
    rng = np.random.default_rng(1)
    for noise in (1.0, 1e-3, 1e-9):
        a = np.linalg.qr(rng.standard_normal((50, 6)))[0]
        b = np.linalg.qr(a + noise * rng.standard_normal((50, 6)))[0]
        ours = principal_angles(torch.from_numpy(a), torch.from_numpy(b)).numpy()
        true = np.sort(np.rad2deg(scipy.linalg.subspace_angles(a, b)))
        assert np.sort(ours) == pytest.approx(true, rel=1e-5, abs=1e-12)


def test_the_control_keeps_every_singular_value() -> None:
    D = torch.randn(30, 50, dtype=torch.float64)
    mixed = scrambled(D, "some.matrix")
    assert torch.equal(mixed, scrambled(D, "some.matrix"))
    assert not torch.equal(mixed, scrambled(D, "another.matrix"))
    assert torch.allclose(torch.linalg.svdvals(mixed), torch.linalg.svdvals(D))
