"""What is said about a spectrum in one number, and a matrix's row of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.spectrum.matrices import Matrix
from paretune.spectrum.null import null, signal_count
from paretune.spectrum.singular import Spectrum

Values = NDArray[np.float64]
# Sums that equal the threshold but for rounding count as having reached it
_ROUNDING = 1e-12


def rank_for(values: Values, share: float = 0.9) -> int | None:
    """Smallest k whose k largest squared values hold ``share`` of their sum; None for zeros.

    The rank of Biderman et al. (2024), section 4.6, reads "90% of the variance" so.
    """
    squares = np.square(values)
    total = float(squares.sum())
    if not total > 0:
        return None
    reached = np.cumsum(squares) >= share * total * (1 - _ROUNDING)
    return int(np.argmax(reached)) + 1


def effective_rank(values: Values) -> float | None:
    """exp of the entropy of the values' shares of their sum (Roy and Vetterli, 2007)."""
    total = float(values.sum())
    if not total > 0:
        return None
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(values: Values) -> float | None:
    """Squared Frobenius norm over squared spectral norm."""
    return float(np.square(values / values[0]).sum()) if values[0] > 0 else None


def frobenius(values: Values) -> float:
    """Frobenius norm, from the singular values."""
    return float(np.linalg.norm(values))


def mean_absolute_deviation(tuned: Values, base: Values) -> float:
    """Mean of |sigma_i(W) - sigma_i(W0)|: how far the spectrum itself moved."""
    return float(np.abs(tuned - base).mean())


def row(
    matrix: Matrix,
    delta: Spectrum,
    base: Spectrum | None = None,
    tuned: Spectrum | None = None,
) -> dict[str, Any]:
    """All measures of one matrix that follow from singular values; None where not measured.

    Norms are those of the update; ``*_relative`` is divided by the same norm of W0.
    """
    d = delta.values.numpy()
    b = base.values.numpy() if base else None
    t = tuned.values.numpy() if tuned else None
    law = null(matrix.d_out, matrix.d_in)
    rank, effective, stable = rank_for(d), effective_rank(d), stable_rank(d)
    size, largest = frobenius(d), float(d[0])
    deviation = mean_absolute_deviation(t, b) if t is not None and b is not None else None
    return {
        "matrix": matrix.name,
        "layer": matrix.layer,
        "module": matrix.module,
        "kind": matrix.kind,
        "d_out": matrix.d_out,
        "d_in": matrix.d_in,
        "rank90": rank,
        "null_rank90": law.rank90,
        "rank90_relative": _over(rank, law.rank90),
        "effective_rank": effective,
        "null_effective_rank": law.effective_rank,
        "stable_rank": stable,
        "null_stable_rank": law.stable_rank,
        "above_noise": _above_noise(matrix, delta),
        "frobenius": size,
        "frobenius_relative": _over(size, frobenius(b)) if b is not None else None,
        "spectral": largest,
        "spectral_relative": _over(largest, float(b[0])) if b is not None else None,
        "base_rank90": rank_for(b) if b is not None else None,
        "tuned_rank90": rank_for(t) if t is not None else None,
        "base_effective_rank": effective_rank(b) if b is not None else None,
        "tuned_effective_rank": effective_rank(t) if t is not None else None,
        "spectrum_mad": deviation,
        "spectrum_mad_relative": _over(deviation, float(b.mean())) if b is not None else None,
        "route": delta.route,
        "unresolved": delta.unresolved,
    }


def _above_noise(matrix: Matrix, delta: Spectrum) -> int:
    """Directions of the update that stand out of noise; of an adapter, all that are not zero."""
    values = delta.values.numpy()
    if delta.route == "factors":
        return int((values > 1e-12 * values[0]).sum()) if values[0] > 0 else 0
    return signal_count(values, matrix.d_out, matrix.d_in)


def _over(value: float | None, by: float) -> float | None:
    return value / by if value is not None and by > 0 else None
