"""Eigenvalues of many symmetric matrices at once on a GPU: to a band, to a tridiagonal, bisection.

A library's solver reduces one matrix to tridiagonal form column by column, which is bound by
memory, and leaves most of a large GPU idle. Here M matrices go through the steps together: block
reflections bring them to a band (products of matrices), reflections chase the band away, sweep
behind sweep (Bischof, Lang and Sun, 2000), and every eigenvalue of the tridiagonal matrices is
found by counting sign changes (Sturm). All in float64; values only, no vectors.
"""

from __future__ import annotations

import torch

from paretune.spectrum.kernels import chased, launch_bisect, launch_signed_lu

BAND = 32  # bandwidth after the first step
# A first Cholesky factor that leaves columns this far from orthonormal is not mended by a second;
# below it the second leaves rounding errors only (Yamamoto et al., 2015, have 5/64)
_MENDABLE = 5 / 64


def eigenvalues(A_Mnn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending eigenvalues [M, n] of M symmetric matrices, which are overwritten.

    Args:
        A_Mnn: float64 on a GPU, both triangles filled.

    Returns:
        The eigenvalues, and for each matrix [M] whether they are right. Where not, a block column
        was too near to a lower rank for the way it is factorised; it wants another solver.
    """
    good_M = to_band(A_Mnn, BAND)
    return bisect(*chased(A_Mnn, BAND)), good_M


def to_band(A_Mnn: torch.Tensor, band: int) -> torch.Tensor:
    """Reduce to a band in place: afterwards the lower triangle holds it, and zeros below it.

    For each block column P = Q R with Q = I - V T V^T, the trailing matrix becomes
    Q^T A Q = A - V Z^T - Z V^T, Z = W - V (T^T V^T W) / 2, W = A V T.

    Returns:
        Whether that is right, [M].
    """
    n = A_Mnn.shape[-1]
    worst_M = A_Mnn.new_zeros(len(A_Mnn))
    for start in range(0, n - band - 1, band):
        below = start + band
        panel_MmB = A_Mnn[:, below:, start:below].contiguous()
        if panel_MmB.shape[1] >= band:
            V, Y, R, off_M = by_cholesky(panel_MmB)
            worst_M = torch.maximum(worst_M, off_M)
        else:
            V, Y, R = by_householder(panel_MmB)
        rest_Mmm = A_Mnn[:, below:, below:]
        W = torch.bmm(rest_Mmm, Y)
        Z = W - 0.5 * V @ (Y.mT @ W)
        left, right = torch.cat([V, Z], dim=2), torch.cat([Z, V], dim=2)
        rest_Mmm.baddbmm_(left, right.mT, alpha=-1)
        A_Mnn[:, below:, start:below] = 0
        A_Mnn[:, below : below + R.shape[1], start:below] = R
    # NaN, from a factorisation that broke down, compares as not good
    return worst_M <= _MENDABLE


def by_cholesky(
    P_MmB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """V, V T and R of a block column, by Cholesky QR twice and reflections rebuilt from Q.

    Products of matrices only, where Householder's own way goes column by column (Yamamoto et al.,
    2015; Ballard et al., 2015). The last value [M] is how far the first pass left Q from
    orthonormal; the second mends that only where it is small.
    """
    band = P_MmB.shape[2]
    R = torch.linalg.cholesky_ex(P_MmB.mT @ P_MmB).L.mT
    Q = torch.linalg.solve_triangular(R, P_MmB, upper=True, left=False)
    products = Q.mT @ Q
    off_M = (products - torch.eye(band, dtype=Q.dtype, device=Q.device)).abs().amax((1, 2)) * band
    again = torch.linalg.cholesky_ex(products).L.mT
    Q = torch.linalg.solve_triangular(again, Q, upper=True, left=False)
    R = again @ R
    # Q - S = V U with signs S chosen so that no pivot is small; then T = -U S V_1^-T
    packed, sign_MB = launch_signed_lu(Q[:, :band].contiguous())
    U = packed.triu()
    top = packed.tril(-1)
    top.diagonal(dim1=-2, dim2=-1).fill_(1)
    rest = torch.linalg.solve_triangular(U, Q[:, band:], upper=True, left=False)
    V = torch.cat([top, rest], dim=1)
    T = torch.linalg.solve_triangular(
        top.mT, -U * sign_MB[:, None, :], upper=True, left=False, unitriangular=True
    )
    return V, V @ T, sign_MB[:, :, None] * R, off_M


def by_householder(P_MmB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same by LAPACK's reflections, for any block column."""
    k = min(P_MmB.shape[1:])
    packed, tau_Mk = torch.geqrf(P_MmB)
    V = packed[..., :k].tril(-1)
    V.diagonal(dim1=-2, dim2=-1).fill_(1)
    # A reflection that does nothing has tau = 0; its vector must then count for nothing
    idle_Mk = tau_Mk == 0
    V = V * ~idle_Mk[:, None, :]
    inverse = (V.mT @ V).triu(1)
    inverse.diagonal(dim1=-2, dim2=-1).copy_(1 / torch.where(idle_Mk, 1.0, tau_Mk))
    Y = torch.linalg.solve_triangular(inverse, V, upper=True, left=False)
    return V, Y, packed[:, :k].triu()


def bisect(d_Mn: torch.Tensor, e_Mm: torch.Tensor) -> torch.Tensor:
    """Ascending eigenvalues [M, n] of symmetric tridiagonal matrices, to float64 rounding."""
    pad = torch.nn.functional.pad
    reach_Mn = pad(e_Mm.abs(), (1, 0)) + pad(e_Mm.abs(), (0, 1))
    low_M, high_M = (d_Mn - reach_Mn).amin(1), (d_Mn + reach_Mn).amax(1)
    margin_M = 1e-12 * torch.maximum(low_M.abs(), high_M.abs()) + 1e-290
    return launch_bisect(d_Mn, e_Mm.square(), low_M - margin_M, high_M + margin_M)
