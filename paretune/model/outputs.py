"""What a layer's outputs go through after the products, arm by arm: DoRA's lengths, and biases."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from paretune.model.dropout import masked
from paretune.model.product import Dropout


class Scale(NamedTuple):
    """Some arms' factor of each output, magnitude / norm; 1 where the magnitude is None.

    Attributes:
        arms: k, how many it is for, in the order of the pass.
        magnitude_kO: trained lengths of DoRA, float32.
        norm_kO: lengths of the rows of W0 + Delta right now, a constant to the gradient.
        dropout: masks on the adapters' input, or None.
    """

    arms: int
    magnitude_kO: torch.Tensor | None = None
    norm_kO: torch.Tensor | None = None
    dropout: Dropout | None = None


class Output(NamedTuple):
    """A layer's outputs [K, N, O] times the arms' factors, plus the arms' biases.

    Attributes:
        scales: in the order of the arms, or empty for a factor of 1 everywhere.
        biases: [k, O] each, in the order of the arms, or empty for none at all.
    """

    scales: tuple[Scale, ...] = ()
    biases: tuple[torch.Tensor, ...] = ()


def finished(
    y: torch.Tensor, x: torch.Tensor, weight_OD: torch.Tensor, count: int, output: Output
) -> torch.Tensor:
    """Scale and shift ``y`` = x W0^T + Delta's part, without bias; rows arm-major, [K * B, ...].

    DoRA (Liu et al., 2024, arXiv 2402.09353, equation 5 and section 4.3) with dropout as in PEFT,
    where the masked input xd meets Delta, and W0 beyond the base's own product:

        W0 x + (s - 1) W0 xd + s Delta xd = s (W0 x + Delta xd) + (1 - s) W0 (x - xd)
    """
    y_KNO = y.view(count, -1, y.shape[-1]).float()
    if output.scales:
        y_KNO = y_KNO * _factors(y, output.scales)
        if any(scale.dropout for scale in output.scales):
            y_KNO = y_KNO + _masked_part(x, weight_OD, count, output.scales)
    if output.biases:
        y_KNO = y_KNO + torch.cat(output.biases)[:, None]
    return y_KNO.to(y.dtype).view(y.shape)


def _factors(y: torch.Tensor, scales: tuple[Scale, ...]) -> torch.Tensor:
    return torch.cat([factor(scale, y.shape[-1], y.device) for scale in scales])[:, None]


def factor(scale: Scale, size: int, device: torch.device) -> torch.Tensor:
    """The factors [k, d_out] of some arms, float32."""
    if scale.magnitude_kO is None or scale.norm_kO is None:
        return torch.ones(scale.arms, size, device=device)
    # A row of zeros has no direction: it stays at zero rather than turn into NaN
    return scale.magnitude_kO / scale.norm_kO.clamp(min=torch.finfo(torch.float32).tiny)


def _masked_part(
    x: torch.Tensor, weight_OD: torch.Tensor, count: int, scales: tuple[Scale, ...]
) -> torch.Tensor:
    """(1 - s) W0 (x - xd) of the arms that have DoRA and dropout, zero for the others."""
    x_KND = x.reshape(count, -1, x.shape[-1]).to(weight_OD.dtype)
    parts = []
    first = 0
    for scale in scales:
        own = x_KND[first : first + scale.arms]
        first += scale.arms
        if scale.dropout is None or scale.magnitude_kO is None:
            parts.append(own.new_zeros(*own.shape[:2], weight_OD.shape[0], dtype=torch.float32))
            continue
        dropped = F.linear(own - masked(own, *scale.dropout), weight_OD)
        s_kO = factor(scale, weight_OD.shape[0], x.device)
        parts.append((1 - s_kO)[:, None] * dropped)
    return torch.cat(parts)
