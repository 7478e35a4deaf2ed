"""The GPU's batched eigenvalues against LAPACK."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch


@pytest.fixture
def tridiagonal(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with narrow bands, so that small matrices take every path."""
    from paretune.spectrum import tridiagonal

    monkeypatch.setattr(tridiagonal, "BAND", 4)
    return tridiagonal


@pytest.mark.parametrize(("size", "band"), [(24, 8), (21, 4)])
def test_eigenvalues_equal_lapacks(
    tridiagonal: ModuleType, monkeypatch: pytest.MonkeyPatch, device: torch.device,
    size: int, band: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(tridiagonal, "BAND", band)
    torch.manual_seed(0)
    X = torch.randn(2, size, 60, dtype=torch.float64, device=device)
    A = X @ X.mT
    true = torch.linalg.eigvalsh(A)
    lower = A.clone()
    tridiagonal.to_band(lower, band)
    lower = lower.tril()
    i = torch.arange(size, device=device)
    assert lower[:, i[:, None] - i[None, :] > band].abs().max() == 0
    banded = torch.linalg.eigvalsh(lower + lower.tril(-1).mT)
    assert (banded - true).abs().max() <= 1e-13 * true.max()
    found, good = tridiagonal.eigenvalues(A.clone())
    assert (found - true).abs().max() <= 1e-14 * true.max()
    assert good.tolist() == [True, True]


@pytest.mark.parametrize("way", ["by_cholesky", "by_householder"])
def test_panels_are_orthogonal(tridiagonal: ModuleType, device: torch.device, way: str) -> None:
    torch.manual_seed(0)
    P = torch.randn(2, 20, 8, dtype=torch.float64, device=device)
    V, Y, R = getattr(tridiagonal, way)(P)[:3]
    eye = torch.eye(20, dtype=torch.float64, device=device)
    Q = eye - Y @ V.mT
    assert torch.allclose(Q @ Q.mT, eye, atol=1e-12)
    assert torch.allclose(Q[:, :, :8] @ R, P, atol=1e-12)


def test_low_rank_is_answered_rightly_or_given_up(
    tridiagonal: ModuleType, device: torch.device
) -> None:
    torch.manual_seed(0)
    given_up = 0
    for rank in (1, 3, 6):
        low = torch.randn(4, 16, rank, dtype=torch.float64, device=device)
        A = low @ low.mT
        found, good = tridiagonal.eigenvalues(A.clone())
        off = (found - torch.linalg.eigvalsh(A)).abs().amax(1) / A.abs().amax((1, 2))
        assert (off[good] <= 1e-9).all()
        given_up += int((~good).sum())
    assert given_up > 0, "the guard was never needed"
