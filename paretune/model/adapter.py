"""Low-rank adapters with an arm axis: one frozen linear layer, many arms' updates beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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

    def delta(self, name: str, x_KND: torch.Tensor, mask_KND: torch.Tensor | None) -> torch.Tensor:
        """gamma_k (x_k A_k) B_k for a layer: [K, N, d_in] -> [K, N, d_out]."""
        A = self.flat.parameters[f"{name}.A"]
        B = self.flat.parameters[f"{name}.B"]
        if mask_KND is not None:
            x_KND = x_KND * mask_KND.to(x_KND.dtype)
        return torch.bmm(torch.bmm(x_KND, A), B) * self.gamma_K11.to(x_KND.dtype)


@dataclass
class Active:
    """What the adapted layers of one model apply right now; one object shared by all of them.

    ``banks`` is empty for the frozen base itself. ``step`` is set while training (dropout on) and
    None while scoring. ``first_row`` is the first row of the current piece in each arm's batch.
    """

    banks: list[Bank] = field(default_factory=list)
    step: int | None = None
    first_row: int = 0

    @property
    def count(self) -> int:
        """Number of arms folded into the batch."""
        return sum(len(bank.arms) for bank in self.banks)


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
        """[K * B, ..., d_in] -> [K * B, ..., d_out]."""
        y = F.linear(x, self.weight, self.bias)
        active = self._active
        if not any(self.layer.name in bank.layers for bank in active.banks):
            return y
        x_KND = x.reshape(active.count, -1, x.shape[-1])
        pieces: list[torch.Tensor] = []
        start = 0
        for bank in active.banks:
            stop = start + len(bank.arms)
            if self.layer.name in bank.layers:
                part = x_KND[start:stop]
                mask = self._mask(bank, part, x)
                pieces.append(bank.delta(self.layer.name, part, mask))
            else:
                shape = (stop - start, x_KND.shape[1], self.layer.d_out)
                pieces.append(torch.zeros(shape, dtype=y.dtype, device=y.device))
            start = stop
        update = pieces[0] if len(pieces) == 1 else torch.cat([p.to(y.dtype) for p in pieces])
        return y + update.reshape(y.shape).to(y.dtype)

    def _mask(self, bank: Bank, x_KND: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
        active = self._active
        if active.step is None or not bank.drops:
            return None
        keys = [key(arm.seed, active.step, self.index, 1) for arm in bank.arms]
        per_row = x_KND.shape[1] // (x.shape[0] // active.count)
        shape = (x_KND.shape[0], x_KND.shape[1], x_KND.shape[2])
        keys_K = torch.tensor(keys, dtype=torch.int32, device=x.device)
        return scaled_masks(keys_K, bank.rate_K, active.first_row * per_row, shape)
