"""Where an update points: angles with W0's leading subspaces, and intruder dimensions."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import torch

from paretune.spectrum.matrices import Matrix
from paretune.spectrum.measures import rank_for
from paretune.spectrum.singular import Spectrum, from_eigenvalues, gram


@dataclass(frozen=True)
class Short:
    """Singular directions of a matrix X [n, N], n <= N: those of its short side.

    Attributes:
        vectors: [n, k] orthonormal columns, by descending value.
        values: [k] singular values.
        spectrum: all n singular values.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    spectrum: Spectrum

    def leading(self, k: int) -> Short:
        """The first k of them."""
        return Short(self.vectors[:, :k], self.values[:k], self.spectrum)

    def long(self, X_nN: torch.Tensor) -> torch.Tensor:
        """[N, k] the directions of the long side, X^T s / sigma; zero where sigma is lost."""
        kept = self.values > self.spectrum.floor
        inverse = torch.where(kept, 1 / self.values.clamp(min=1e-300), 0.0)
        return (X_nN.T @ self.vectors) * inverse


def directions(G: torch.Tensor, k: int | None = None) -> Short:
    """Eigenvectors of a Gram matrix (lower triangle), all or the k leading ones, and all values.

    The solver's time goes into reducing the matrix; all vectors cost little more than a few.
    """
    n = G.shape[0]
    ascending, vectors = torch.linalg.eigh(G, UPLO="L")
    spectrum = from_eigenvalues(ascending)
    kept = n if k is None else k
    return Short(vectors.flip(1)[:, :kept], spectrum.values[:kept].to(G.device), spectrum)


class BaseDirections:
    """All of one W0's singular directions, computed once for every tuned model.

    Args:
        W0: [d_out, d_in] on the device that computes; kept in float64.
    """

    def __init__(self, matrix: Matrix, W0: torch.Tensor) -> None:
        self.matrix = matrix
        self.turned = W0.shape[0] > W0.shape[1]
        self.X0_nN = (W0.T if self.turned else W0).double()
        self.own = directions(gram(self.X0_nN))
        self.rank90 = rank_for(self.own.spectrum.values.numpy()) or 1

    def measures(
        self, W: torch.Tensor, top: int, threshold: float
    ) -> tuple[dict[str, Any], Spectrum, Spectrum]:
        """The measures of one tuned W [d_out, d_in] that need singular vectors.

        Args:
            top: of how many leading directions angles and intruders are taken.

        Returns:
            The measures, and the spectra of W and of W - W0, which come with them.
        """
        k = min(top, self.matrix.smaller)
        X_nN = (W.T if self.turned else W).double()
        D_nN = X_nN - self.X0_nN
        size = float(torch.linalg.matrix_norm(D_nN))
        found: dict[str, Any] = {"top": k, "threshold": threshold}
        tuned = directions(gram(X_nN), k)
        found |= self._intruders(X_nN, tuned, threshold, "")
        base = self.own.leading(k)
        found["tuned_angle_left"], found["tuned_angle_right"] = (
            _largest_angle(a, b)
            for a, b in zip(self._sides(self.X0_nN, base), self._sides(X_nN, tuned), strict=True)
        )
        delta = directions(gram(D_nN), k)
        if size == 0:
            return found, tuned.spectrum, delta.spectrum
        found["delta_overlap_left"], found["delta_overlap_right"] = (
            overlap(a, b)
            for a, b in zip(self._sides(self.X0_nN, base), self._sides(D_nN, delta), strict=True)
        )
        found["null_overlap_left"] = k / self.matrix.d_out
        found["null_overlap_right"] = k / self.matrix.d_in
        found["outside"] = self._outside(D_nN, size)
        found["null_outside"] = 1 - self.rank90**2 / (self.matrix.d_out * self.matrix.d_in)
        control = self.X0_nN + scrambled(D_nN, self.matrix.name)
        found |= self._intruders(control, directions(gram(control), k), threshold, "control_")
        return found, tuned.spectrum, delta.spectrum

    def _sides(self, X_nN: torch.Tensor, own: Short) -> tuple[torch.Tensor, torch.Tensor]:
        """Left and right directions."""
        short, long = own.vectors, own.long(X_nN)
        return (long, short) if self.turned else (short, long)

    def _outside(self, D_nN: torch.Tensor, size: float) -> float:
        """Share of ||Delta||^2 outside the leading left and right subspaces of W0.

        They are those that hold 90% of W0's own variance.
        """
        lead = self.own.leading(self.rank90)
        core = lead.vectors.T @ (D_nN @ lead.long(self.X0_nN))
        return max(0.0, 1 - (float(torch.linalg.matrix_norm(core)) / size) ** 2)

    def _intruders(
        self, X_nN: torch.Tensor, tuned: Short, threshold: float, prefix: str
    ) -> dict[str, Any]:
        """Shuttleworth et al. (2024): leading left directions that no pretrained one resembles.

        y_j is an intruder where max_i |cos(y_j, x_i)| < threshold over *all* pretrained left
        directions x_i. Beside the count, the intruders' share of ||W||^2.
        """
        if self.turned:
            left_0 = self.own.long(self.X0_nN)
            cosines = left_0.T @ tuned.long(X_nN)
        else:
            cosines = self.own.vectors.T @ tuned.vectors
        intruding = cosines.abs().amax(dim=0) < threshold
        energy = float((tuned.values[intruding] ** 2).sum() / torch.linalg.matrix_norm(X_nN) ** 2)
        return {f"{prefix}intruders": int(intruding.sum()), f"{prefix}intruder_energy": energy}


def overlap(a_dk: torch.Tensor, b_dk: torch.Tensor) -> float:
    """Mean squared cosine of the principal angles between two subspaces of k dimensions."""
    return float((a_dk.T @ b_dk).square().sum() / a_dk.shape[1])


def principal_angles(a_dk: torch.Tensor, b_dk: torch.Tensor) -> torch.Tensor:
    """Angles in degrees, ascending, between the spans of two orthonormal bases.

    From the sines where an angle is small: its cosine would lose digits (Bjorck and Golub, 1973).
    """
    product = a_dk.T @ b_dk
    cosines = torch.linalg.svdvals(product).clamp(max=1)
    sines = torch.linalg.svdvals(b_dk - a_dk @ product).clamp(max=1).flip(0)
    return torch.rad2deg(torch.where(cosines > math.sqrt(0.5), sines.asin(), cosines.acos()))


def scrambled(D: torch.Tensor, name: str) -> torch.Tensor:
    """The control: the update with its rows and columns in random order and with random signs.

    It has every singular value, so every norm, of the update, but no relation of its directions
    to W0. The order depends on the matrix's name alone.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for axis in (0, 1):
        order = torch.randperm(D.shape[axis], generator=generator).to(D.device)
        sign = torch.randint(0, 2, (D.shape[axis],), generator=generator).to(D) * 2 - 1
        D = D.index_select(axis, order) * (sign[:, None] if axis == 0 else sign)
    return D


def _largest_angle(a_dk: torch.Tensor, b_dk: torch.Tensor) -> float:
    return float(principal_angles(a_dk, b_dk)[-1])
