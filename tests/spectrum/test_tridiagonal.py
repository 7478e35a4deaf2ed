"""The GPU's batched eigenvalues, its kernels interpreted on a CPU, against LAPACK."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]

# In a process of its own: the interpreter must be chosen before triton is loaded
PROGRAM = """
import torch
from paretune.spectrum import tridiagonal

torch.manual_seed(0)
for n, band in ((24, 8), (21, 4)):
    X = torch.randn(2, n, 60, dtype=torch.float64)
    A = X @ X.mT
    true = torch.linalg.eigvalsh(A)
    tridiagonal.BAND = band
    B = A.clone()
    tridiagonal.to_band(B, band)
    lower = B.tril()
    i = torch.arange(n)
    assert lower[:, i[:, None] - i[None, :] > band].abs().max() == 0
    banded = torch.linalg.eigvalsh(lower + lower.tril(-1).mT)
    assert (banded - true).abs().max() <= 1e-13 * true.max(), "band"
    found, good = tridiagonal.eigenvalues(A.clone())
    assert (found - true).abs().max() <= 1e-14 * true.max(), "eigenvalues"
    assert good.tolist() == [True, True]
for way in (tridiagonal.by_cholesky, tridiagonal.by_householder):
    P = torch.randn(2, 20, 8, dtype=torch.float64)
    V, Y, R = way(P)[:3]
    Q = torch.eye(20, dtype=torch.float64) - Y @ V.mT
    assert torch.allclose(Q @ Q.mT, torch.eye(20, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(Q[:, :, :8] @ R, P, atol=1e-12)
given_up = 0
for rank in (1, 3, 6):
    for band in (4,):
        tridiagonal.BAND = band
        low = torch.randn(4, 16, rank, dtype=torch.float64)
        A = low @ low.mT
        found, good = tridiagonal.eigenvalues(A.clone())
        off = (found - torch.linalg.eigvalsh(A)).abs().amax(1) / A.abs().amax((1, 2))
        assert (off[good] <= 1e-9).all(), "a matrix of low rank is given up or answered rightly"
        given_up += int((~good).sum())
assert given_up > 0, "the guard was never needed"
print("all right")
"""


def test_eigenvalues_equal_lapacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "all right", done.stderr
