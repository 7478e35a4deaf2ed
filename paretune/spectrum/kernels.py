"""GPU kernels of the tridiagonal reduction: one step of many sweeps at once, and bisection."""
# Triton traces these functions: annotations and plain Python would break them
# mypy: ignore-errors

from __future__ import annotations

import threading
from typing import Any

import torch
import triton
import triton.language as tl

_STEPS = 56  # halvings of the interval that holds all eigenvalues: beyond float64's precision
_LANES = 128  # eigenvalues of one program


@triton.jit(do_not_specialize=["t"])
def _chase_step(A, n, t, size, B: tl.constexpr):
    s = t // 3 - tl.program_id(0)
    k = t - 3 * s
    first = s + 1 + k * B
    if (s >= 0) & (s < n - 2) & (first < n):
        base = A + tl.program_id(1).to(tl.int64) * size
        i = tl.arange(0, B)
        rows = first + i
        inside = rows < n
        before = tl.where(k == 0, s, first - B)
        # The block that holds the column to clear: of step 0 that column alone
        here = base + rows[:, None] * n + (before + i)[None, :]
        mask = inside[:, None] & ((k > 0) | (i == 0))[None, :]
        block = tl.load(here, mask=mask, other=0.0)
        x = tl.sum(tl.where(i[None, :] == 0, block, 0.0), axis=1)
        alpha = tl.sum(tl.where(i == 0, x, 0.0), axis=0)
        tail = tl.sum(tl.where(i > 0, x * x, 0.0), axis=0)
        norm = tl.sqrt(alpha * alpha + tail)
        beta = tl.where(alpha >= 0, -norm, norm)
        moves = tail > 0
        divisor = tl.where(moves, alpha - beta, 1.0)
        v = tl.where(i == 0, 1.0, x / divisor)
        tau = tl.where(moves, (beta - alpha) / tl.where(moves, beta, 1.0), 0.0)
        w = tau * tl.sum(v[:, None] * block, axis=0)
        tl.store(here, block - v[:, None] * w[None, :], mask=mask)
        # The diagonal block from both sides; its lower triangle is what is kept
        here = base + rows[:, None] * n + rows[None, :]
        lower = inside[:, None] & (i[:, None] >= i[None, :])
        half = tl.load(here, mask=lower, other=0.0)
        block = half + tl.trans(tl.where(i[:, None] > i[None, :], half, 0.0))
        p = tau * tl.sum(block * v[None, :], axis=1)
        w = p - 0.5 * tau * tl.sum(p * v, axis=0) * v
        block = block - v[:, None] * w[None, :] - w[:, None] * v[None, :]
        tl.store(here, block, mask=lower)
        # The block below from the right: the fill-in that the next step clears
        further = rows + B
        here = base + further[:, None] * n + rows[None, :]
        mask = (further < n)[:, None] & inside[None, :]
        block = tl.load(here, mask=mask, other=0.0)
        u = tau * tl.sum(block * v[None, :], axis=1)
        tl.store(here, block - u[:, None] * v[None, :], mask=mask)


@triton.jit
def _bisect(D, E2, LOW, HIGH, OUT, n, steps, LANES: tl.constexpr):
    j = tl.program_id(0) * LANES + tl.arange(0, LANES)
    matrix = tl.program_id(1)
    low = tl.load(LOW + matrix) + tl.zeros([LANES], tl.float64)
    high = tl.load(HIGH + matrix) + tl.zeros([LANES], tl.float64)
    tiny = 1e-300
    for _step in range(steps):
        x = 0.5 * (low + high)
        q = tl.load(D + matrix * n) - x
        count = (q < 0).to(tl.int32)
        for i in range(1, n):
            q = tl.where(tl.abs(q) < tiny, -tiny, q)
            q = tl.load(D + matrix * n + i) - x - tl.load(E2 + matrix * n + i) / q
            count += (q < 0).to(tl.int32)
        above = count > j
        high = tl.where(above, x, high)
        low = tl.where(above, low, x)
    tl.store(OUT + matrix * n + j, 0.5 * (low + high), mask=j < n)


@triton.jit
def _signed_lu(Q, SIGN, B: tl.constexpr):
    i = tl.arange(0, B)
    place = Q + tl.program_id(0) * B * B + i[:, None] * B + i[None, :]
    block = tl.load(place)
    signs = tl.zeros([B], tl.float64)
    for c in range(B):
        column = tl.sum(tl.where(i[None, :] == c, block, 0.0), axis=1)
        row = tl.sum(tl.where(i[:, None] == c, block, 0.0), axis=0)
        pivot = tl.sum(tl.where(i == c, column, 0.0), axis=0)
        sign = tl.where(pivot >= 0, -1.0, 1.0)
        u = pivot - sign
        factor = tl.where(i > c, column / u, 0.0)
        block = block - factor[:, None] * tl.where(i > c, row, 0.0)[None, :]
        below = (i[:, None] > c) & (i[None, :] == c)
        block = tl.where(below, factor[:, None], block)
        block = tl.where((i[:, None] == c) & (i[None, :] == c), u, block)
        signs = tl.where(i == c, sign, signs)
    tl.store(place, block)
    tl.store(SIGN + tl.program_id(0) * B + i, signs)


def launch_signed_lu(Q_MBB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L U = Q - diag(sign), packed in Q's place, signs chosen against each pivot's own.

    Of an orthonormal block every pivot is then at least 1 in size (Ballard et al., 2015).
    """
    M, band, _ = Q_MBB.shape
    signs_MB = Q_MBB.new_empty(M, band)
    _signed_lu[(M,)](Q_MBB, signs_MB, band, num_warps=1)
    return Q_MBB, signs_MB


_graphs: dict[tuple[int, ...], tuple[Any, torch.Tensor]] = {}
_lock = threading.Lock()


def chased(A_Mnn: torch.Tensor, band: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce a band to tridiagonal form; returns diagonals [M, n] and [M, n - 1].

    Sweep s clears column s and pushes the fill-in down the band, ``band`` rows a step. Step k of
    sweep s needs step k + 2 of sweep s - 1, so all steps with 3 s + k = t run at once, and one t
    after another: 3 n short launches. On a GPU they are recorded once and then replayed, in the
    memory of the matrices that they were recorded with.
    """
    if A_Mnn.device.type != "cuda":
        _all_steps(A_Mnn, band)
    else:
        key = (A_Mnn.data_ptr(), *A_Mnn.shape, band)
        with _lock:
            if key not in _graphs:
                _graphs[key] = (_recorded(A_Mnn, band), A_Mnn)
            graph, _ = _graphs[key]
        graph.replay()
    diagonal = A_Mnn.diagonal(dim1=-2, dim2=-1).contiguous()
    return diagonal, A_Mnn.diagonal(offset=-1, dim1=-2, dim2=-1).contiguous()


def forget(A_Mnn: torch.Tensor) -> None:
    """Let go of what was recorded for these matrices, and so of their memory."""
    with _lock:
        for key in [key for key in _graphs if key[0] == A_Mnn.data_ptr()]:
            del _graphs[key]


def _recorded(A_Mnn: torch.Tensor, band: int) -> Any:
    n = A_Mnn.shape[-1]
    # Compiled before it is recorded, by a step beyond the last: it changes nothing
    _chase_step[(1, 1)](A_Mnn, n, 3 * n + 16, n * n, band, num_warps=2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        _all_steps(A_Mnn, band)
    return graph


def _all_steps(A_Mnn: torch.Tensor, band: int) -> None:
    M, n, _ = A_Mnn.shape
    grid = (-(-n // (3 * band)) + 2, M)
    for t in range(3 * (n - 3) + 1):
        _chase_step[grid](A_Mnn, n, t, n * n, band, num_warps=2)


def launch_bisect(
    d_Mn: torch.Tensor, squares_Mm: torch.Tensor, low_M: torch.Tensor, high_M: torch.Tensor
) -> torch.Tensor:
    """Bisection of every eigenvalue at once, by the number of negative pivots of T - x."""
    M, n = d_Mn.shape
    shifted = torch.nn.functional.pad(squares_Mm, (1, 0)).contiguous()
    out = torch.empty_like(d_Mn)
    grid = (-(-n // _LANES), M)
    _bisect[grid](d_Mn, shifted, low_M, high_M, out, n, _STEPS, _LANES, num_warps=4)
    return out
