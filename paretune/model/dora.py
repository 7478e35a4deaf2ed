"""DoRA: the length of each row of the tuned weights is trained apart from its direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch


class RowLengths:
    """Lengths [K, d_out] of the rows of W0 + Delta in each layer of DoRA arms.

    Args:
        weights: what gives W0 [d_out, d_in] of each layer.

    Attributes:
        norms: the lengths, in place; layers read them.
    """

    def __init__(
        self,
        weights: Mapping[str, Callable[[], torch.Tensor]],
        count: int,
    ) -> None:
        self._weights = weights
        self._squares = {name: weight().float().square().sum(1) for name, weight in weights.items()}
        self.norms = {
            name: squares_O.sqrt().repeat(count, 1) for name, squares_O in self._squares.items()
        }
        self._measured = -1

    def of_base(self, name: str) -> torch.Tensor:
        """Lengths [d_out] of W0's rows, with which DoRA's magnitudes begin."""
        return self._squares[name].sqrt()

    @torch.no_grad()
    def measure(
        self, changes: int, factors: Callable[[str], tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Compute the lengths where the factors have changed since.

        Args:
            changes: how often they have changed.
            factors: A [K, d_in, r] and gamma B [K, r, d_out] of a layer.
        """
        if self._measured == changes:
            return
        for name, norms_KO in self.norms.items():
            norms_KO.copy_(row_lengths(self._weights[name](), self._squares[name], *factors(name)))
        self._measured = changes


def row_lengths(
    weight_OD: torch.Tensor, squares_O: torch.Tensor, A_KDr: torch.Tensor, gB_KrO: torch.Tensor
) -> torch.Tensor:
    """Lengths [K, O] of the rows of W0 + (A_k gB_k)^T, float32, without making the matrices.

        |w + d|^2 = |w|^2 + 2 w d + |d|^2,   w d = (W0 A) gB,   |d|^2 = gB^T (A^T A) gB

    Args:
        squares_O: |w|^2 of each row, float32.
        A_KDr, gB_KrO: factors of Delta, gamma included, float32.
    """
    wA_KOr = torch.matmul(weight_OD.float(), A_KDr)
    cross_KO = (wA_KOr.mT * gB_KrO).sum(1)
    own_KO = ((A_KDr.mT @ A_KDr) @ gB_KrO).mul_(gB_KrO).sum(1)
    return (squares_O + 2 * cross_KO + own_KO).clamp_(min=0).sqrt_()
