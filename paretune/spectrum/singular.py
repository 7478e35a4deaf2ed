"""Singular values in float64: by the Gram matrix, by the exact SVD, or from LoRA's factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Route = Literal["gram", "svd", "factors"]
# The Gram route below is exact to this share of the largest value for any matrix
ACCURACY = 1e-6
_SLICE = 2048  # columns turned to float64 at a time: bounds the memory of a large matrix
_BLOCKS = 8  # the lower triangle of a Gram matrix in block rows: 9/16 of the full product


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix.

    Attributes:
        values: descending, float64, on the CPU; all min(rows, columns) of them, or r for factors.
        route: how they were computed.
        floor: below this a value of the Gram route is not resolved; 0 for the other routes.
    """

    values: torch.Tensor
    route: Route
    floor: float = 0.0

    @property
    def unresolved(self) -> int:
        """How many values lie below the floor."""
        return int((self.values < self.floor).sum())


def singular_values(matrix_MN: torch.Tensor, *, exact: bool = False) -> Spectrum:
    """All singular values of one matrix, by the Gram route where that resolves them.

    The Gram route squares the matrix: its values carry an absolute error of at most
    sqrt(p eps) times the largest, p = 4 sqrt(min(M, N)) (see :func:`gram_floor`), which is below
    1e-6. A value under that bound is noise, so a matrix that has one goes through the float64 SVD
    instead, as does any matrix with ``exact``.

    Args:
        matrix_MN: any floating type, on the device that is to compute.
    """
    if not exact:
        found = from_gram(gram(matrix_MN))
        if not found.unresolved:
            return found
    values = torch.linalg.svdvals(matrix_MN.double())
    return Spectrum(values.cpu(), "svd")


def gram(matrix_MN: torch.Tensor, minus_MN: torch.Tensor | None = None) -> torch.Tensor:
    """G = X X^T or X^T X in float64, whichever is smaller, of X = matrix - minus.

    Products of bf16 or float32 values are exact in float64, and so is the difference, so G carries
    only the rounding of its sums. The wide side is taken in slices, so no float64 copy of the
    matrix is made.

    Returns:
        [n, n], n = min(M, N), on the matrix's device. Only its lower triangle counts, which is all
        that an eigenvalue solver reads.
    """
    n, long = min(matrix_MN.shape), max(matrix_MN.shape)
    turned = matrix_MN.shape[0] > matrix_MN.shape[1]
    G = torch.zeros(n, n, dtype=torch.float64, device=matrix_MN.device)
    step = -(-n // _BLOCKS) if n >= 32 * _BLOCKS else n
    for start in range(0, long, _SLICE):
        part_nS = _wide(matrix_MN, turned, start)
        if minus_MN is not None:
            part_nS = part_nS - _wide(minus_MN, turned, start)
        for first in range(0, n, step):
            G[first:, first : first + step].addmm_(part_nS[first:], part_nS[first : first + step].T)
    return G


def from_gram(G: torch.Tensor) -> Spectrum:
    """Singular values from a Gram matrix's lower triangle, and the floor of their accuracy."""
    return from_eigenvalues(torch.linalg.eigvalsh(G, UPLO="L"))


def from_eigenvalues(ascending: torch.Tensor) -> Spectrum:
    """The same from the Gram matrix's eigenvalues."""
    values = ascending.clamp(min=0).sqrt().flip(0).cpu()
    return Spectrum(values, "gram", gram_floor(len(values)) * float(values[0]))


def gram_floor(n: int) -> float:
    """Relative to the largest singular value, what the Gram route cannot resolve.

    The n^2 entries of G are off by independent roundings of about eps times a squared row norm;
    such a matrix has a spectral norm of at most 2 sqrt(n) eps sigma_max^2, and the solver adds as
    much. An eigenvalue sigma^2 moves by no more than that (Weyl), so a sigma near zero moves by
    the square root: sqrt(4 sqrt(n) eps).
    """
    return math.sqrt(4 * math.sqrt(n) * torch.finfo(torch.float64).eps)


def factor_values(
    B_MOr: torch.Tensor, A_MrI: torch.Tensor, gammas: Sequence[float]
) -> list[Spectrum]:
    """Singular values of M updates gamma B A at once, without forming any of them.

    With B = Q_B R_B and A^T = Q_A R_A, gamma B A = Q_B (gamma R_B R_A^T) Q_A^T, whose singular
    values are those of the r x r matrix in the middle: exact in float64, at the cost of two QRs.

    Args:
        B_MOr: [M, d_out, r]; ``A_MrI`` [M, r, d_in]; r at most d_out and d_in.
        gammas: the M scales.
    """
    R_B = torch.linalg.qr(B_MOr.double(), mode="r").R
    R_A = torch.linalg.qr(A_MrI.double().mT, mode="r").R
    scale_M11 = torch.tensor(gammas, dtype=torch.float64, device=R_B.device)[:, None, None]
    values = torch.linalg.svdvals(scale_M11 * (R_B @ R_A.mT)).cpu()
    return [Spectrum(row, "factors") for row in values]


def _wide(matrix_MN: torch.Tensor, turned: bool, start: int) -> torch.Tensor:
    """A float64 slice of the long side, with the short side first."""
    if turned:
        return matrix_MN[start : start + _SLICE].double().T
    return matrix_MN[:, start : start + _SLICE].double()
