"""PiSSA: adapters that begin as the leading singular vectors of the matrix they adapt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from paretune.model.product import Term
from paretune.study.arms import ArmConfig


class Leading(NamedTuple):
    """The leading singular triplets of a matrix W = U S V^T, float32, largest first."""

    U_Or: torch.Tensor
    S_r: torch.Tensor
    V_Dr: torch.Tensor


class LeadingVectors:
    """The leading singular vectors of a base's matrices, computed once for all arms of a cohort.

    Args:
        weights: what gives each layer's matrix W0 [d_out, d_in].
        rank: triplets that are kept: the largest rank among the arms.
    """

    def __init__(self, weights: Mapping[str, Callable[[], torch.Tensor]], rank: int) -> None:
        self._weights = weights
        self._rank = rank
        self._found: dict[str, Leading] = {}

    def factors(self, layer: str, rank: int, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A0 [d_in, r] and B0 [r, d_out], with gamma A0 B0 the best rank-r approximation of W0^T.

        A0 = V_r sqrt(S_r / gamma) and B0 = sqrt(S_r / gamma) U_r^T (Meng et al., 2024, arXiv
        2404.02948, section 3; the division by gamma is PEFT's). The arm trains against the
        residual W0 - gamma (A0 B0)^T, so that it begins as the base.
        """
        if layer not in self._found:
            U, S, V = leading_vectors(self._weights[layer]())
            kept = slice(self._rank)
            self._found[layer] = Leading(U[:, kept].float(), S[kept].float(), V[:, kept].float())
        U, S, V = self._found[layer]
        root_r = (S[:rank] / gamma).sqrt()
        return V[:, :rank] * root_r, (U[:, :rank] * root_r).T.contiguous()


def leading_vectors(weight_OD: torch.Tensor) -> Leading:
    """All singular triplets of a matrix, in float64.

    They come from the symmetric eigenproblem of the smaller Gram matrix, many times faster than a
    singular value decomposition; the error in a direction of singular value s is about
    1e-16 (s_1 / s)^2, far below float32 for all that carry weight. Each direction's sign is fixed
    by its largest entry.
    """
    W_OD = weight_OD.double()
    wide = W_OD.shape[0] <= W_OD.shape[1]
    _, vectors = torch.linalg.eigh(W_OD @ W_OD.T if wide else W_OD.T @ W_OD)
    own = vectors.flip(1)  # eigh sorts ascending
    other = (W_OD.T if wide else W_OD) @ own
    S_r = torch.linalg.vector_norm(other, dim=0)
    other = other / S_r.clamp(min=torch.finfo(other.dtype).tiny)
    U_Or, V_Dr = (own, other) if wide else (other, own)
    sign_r = V_Dr.gather(0, V_Dr.abs().argmax(dim=0, keepdim=True)).sign()
    return Leading(U_Or * sign_r, S_r, V_Dr * sign_r)


class Anchor:
    """What PiSSA arms of a bank subtract: the factors A0 [K, d_in, r], B0 [K, r, d_out] at first.

    The frozen base stays whole and shared: W0 + gamma (A B - A0 B0)^T.
    """

    def __init__(
        self,
        arms: Sequence[ArmConfig],
        layers: Iterable[str],
        leading: LeadingVectors,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        for name in layers:
            found = [leading.factors(name, arm.rank or 1, arm.gamma) for arm in arms]
            for part, factors in zip(("A0", "B0"), zip(*found, strict=True), strict=True):
                self.tensors[f"{name}.{part}"] = torch.stack(factors).to(device)
        # In float32 the casts are the tensors themselves
        self._casts = {name: value.to(dtype) for name, value in self.tensors.items()}

    def row(self, row: int) -> dict[str, torch.Tensor]:
        """One arm's factors, ``<layer>.A0`` and ``<layer>.B0``."""
        return {name: value[row] for name, value in self.tensors.items()}

    def restore(self, row: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Undo of :meth:`row`."""
        for name, value in self.tensors.items():
            value[row].copy_(tensors[name])
            self._casts[name][row].copy_(tensors[name])

    def term(self, name: str, minus_K11: torch.Tensor, minus: float, first_arm: int) -> Term:
        """The subtraction in one layer; like the base itself it sees no dropout.

        Args:
            minus_K11, minus: the arms' gamma, negative; the same tensor for all layers.
        """
        A, B = self.tensors[f"{name}.A0"], self.tensors[f"{name}.B0"]
        casts = self._casts[f"{name}.A0"], self._casts[f"{name}.B0"]
        return Term(A, B, *casts, minus_K11, minus, first_arm)
