"""Low-rank adapters with an arm axis: one frozen linear layer, many arms' updates beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from paretune.model.dropout import key, scaled_masks
from paretune.model.flat import Flat
from paretune.model.layers import Layer
from paretune.study.arms import ArmConfig


class Bank:
    """Adapters of arms that share rank, layers and optimizer, so that one batched product serves.

    Per adapted layer: A [K, d_in, r] and B [K, r, d_out], float32. B starts at zero and A is drawn
    as PEFT draws it (Kaiming uniform with a = sqrt 5, so U(-1/sqrt(d_in), 1/sqrt(d_in))), from a
    generator of its own for each arm and layer: an arm's start does not depend on its neighbours.

    Args:
        arms: the K arms; ``positions`` are their places in the cohort.
        layers: the adapted layers, by name.
    """

    def __init__(
        self,
        arms: Sequence[ArmConfig],
        positions: Sequence[int],
        layers: dict[str, Layer],
        device: torch.device,
    ) -> None:
        rank = arms[0].rank
        assert rank is not None
        self.arms = list(arms)
        shapes: dict[str, tuple[int, int]] = {}
        for name, layer in layers.items():
            shapes[f"{name}.A"] = (layer.d_in, rank)
            shapes[f"{name}.B"] = (rank, layer.d_out)
        self.flat = Flat(positions, shapes, arm_axis=True, device=device)
        self.layers = dict(layers)
        self.gamma_K11 = torch.tensor([a.gamma for a in arms], device=device)[:, None, None]
        self.rate_K = torch.tensor([a.lora_dropout or 0.0 for a in arms], device=device)
        self.drops = any(a.lora_dropout for a in arms)
        self.reset()

    def reset(self) -> None:
        """Set every arm to its initial weights."""
        self.flat.values.zero_()
        for row, arm in enumerate(self.arms):
            tensors = self.flat.tensors(row)
            for index, (name, layer) in enumerate(self.layers.items()):
                generator = torch.Generator().manual_seed(key(arm.seed, index) & 0xFFFFFFFF)
                bound = layer.d_in**-0.5
                drawn_rD = torch.rand(arm.rank or 1, layer.d_in, generator=generator)
                tensors[f"{name}.A"].copy_(((drawn_rD * 2 - 1) * bound).T)


@dataclass
class Active:
    """What the adapted layers of one model apply right now; one object shared by all of them.

    ``banks`` is empty for the frozen base itself. ``step`` is set while training (dropout on) and
    None while scoring. ``first_row`` is the first row of the current piece in each arm's batch.
    """

    banks: list[Bank] = field(default_factory=list)
    step: int | None = None
    first_row: int = 0
    _last: tuple[torch.Tensor, torch.Tensor] | None = None

    def cast(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``x`` in the type of the product; layers that share an input share the copy."""
        if x.dtype == dtype:
            return x.detach()
        if self._last is None or self._last[0] is not x:
            self._last = (x, x.detach().to(dtype))
        return self._last[1]

    def clear(self) -> None:
        """Apply nothing, and hold on to no activation."""
        self.banks, self.step, self.first_row, self._last = [], None, 0, None

    @property
    def count(self) -> int:
        """Number of arms folded into the batch."""
        return sum(len(bank.arms) for bank in self.banks)


class _Piece(NamedTuple):
    """One bank's part in a layer: its arms' rows, scaling, and dropout mask if any."""

    rows: slice
    gamma_K11: torch.Tensor
    mask: Callable[[], torch.Tensor] | None


class _AdaptedProduct(torch.autograd.Function):
    """x W0^T + bias + gamma_k (x_k A_k) B_k in one node, with no copy of an activation to spare.

    Written out because autograd's own version slices, concatenates and casts every activation
    several times, which costs more than the products. Masks are computed again in the backward
    pass instead of being kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        x_cast: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        count: int,
        pieces: Sequence[_Piece],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        y = F.linear(x_cast, weight, bias)
        x_KND = x_cast.reshape(count, -1, x_cast.shape[-1])
        y_KNO = y.view(count, -1, y.shape[-1])
        cast = [factor.to(weight.dtype) for factor in factors]
        hidden = []
        for i, piece in enumerate(pieces):
            A, B = cast[2 * i], cast[2 * i + 1]
            h_KNr = (torch.bmm(_masked(x_KND, piece), A) * piece.gamma_K11).to(weight.dtype)
            y_KNO[piece.rows].baddbmm_(h_KNr, B)
            hidden.append(h_KNr)
        ctx.save_for_backward(x_cast, weight, *cast, *hidden)
        ctx.count, ctx.pieces = count, pieces
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x_cast, weight, *saved = ctx.saved_tensors
        pieces: Sequence[_Piece] = ctx.pieces
        cast, hidden = saved[: 2 * len(pieces)], saved[2 * len(pieces) :]
        grad = grad.to(weight.dtype)
        g_KNO = grad.reshape(ctx.count, -1, grad.shape[-1])
        x_KND = x_cast.reshape(ctx.count, -1, x_cast.shape[-1])
        grad_x = torch.matmul(grad, weight) if ctx.needs_input_grad[0] else None
        grads: list[torch.Tensor] = []
        for i, piece in enumerate(pieces):
            A, B = cast[2 * i], cast[2 * i + 1]
            g = g_KNO[piece.rows]
            grad_h = (torch.bmm(g, B.mT) * piece.gamma_K11).to(weight.dtype)
            grads += [torch.bmm(_masked(x_KND, piece).mT, grad_h), torch.bmm(hidden[i].mT, g)]
            if grad_x is None:
                continue
            part = grad_x.view(ctx.count, -1, grad_x.shape[-1])[piece.rows]
            if piece.mask is None:
                part.baddbmm_(grad_h, A.mT)
            else:
                part.add_(torch.bmm(grad_h, A.mT) * piece.mask().to(weight.dtype))
        return grad_x, None, None, None, None, None, *(g.float() for g in grads)


def _masked(x_KND: torch.Tensor, piece: _Piece) -> torch.Tensor:
    part = x_KND[piece.rows]
    return part if piece.mask is None else part * piece.mask().to(part.dtype)


class AdaptedLinear(torch.nn.Module):
    """A frozen linear layer whose input rows belong to several arms, arm-major [K * B, ..., d_in].

    The product with the frozen matrix runs once over all arms' rows; each bank adds its arms'
    low-rank updates to their rows.
    """

    def __init__(
        self,
        layer: Layer,
        index: int,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        active: Active,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self.layer = layer
        self.index = index
        self._active = active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[K * B, ..., d_in] -> [K * B, ..., d_out], in the type of the frozen weight."""
        active, name = self._active, self.layer.name
        pieces: list[_Piece] = []
        factors: list[torch.Tensor] = []
        start = 0
        for bank in active.banks:
            stop = start + len(bank.arms)
            if name in bank.layers:
                pieces.append(
                    _Piece(slice(start, stop), bank.gamma_K11, self._mask(bank, x, active.count))
                )
                factors += [bank.flat.parameters[f"{name}.{part}"] for part in "AB"]
            start = stop
        if not pieces:
            return F.linear(x, self.weight, self.bias)
        x_cast = active.cast(x, self.weight.dtype)
        product: torch.Tensor = _AdaptedProduct.apply(  # type: ignore[no-untyped-call]
            x, x_cast, self.weight, self.bias, active.count, pieces, *factors
        )
        return product

    def _mask(self, bank: Bank, x: torch.Tensor, count: int) -> Callable[[], torch.Tensor] | None:
        """What computes the dropout mask [k, N, d_in] of a bank's rows; None when nothing drops."""
        step, first_row = self._active.step, self._active.first_row
        if step is None or not bank.drops:
            return None
        vectors = x.numel() // (count * x.shape[-1])
        per_row = vectors // (x.shape[0] // count)
        keys = [key(arm.seed, step, self.index, 1) for arm in bank.arms]
        keys_K = torch.tensor(keys, dtype=torch.int32, device=x.device)
        shape = (len(bank.arms), vectors, x.shape[-1])
        return lambda: scaled_masks(keys_K, bank.rate_K, first_row * per_row, shape)
