"""Low-rank adapters with an arm axis: one frozen linear layer, many arms' updates beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from paretune.model.dropout import key
from paretune.model.flat import Flat
from paretune.model.layers import Layer
from paretune.model.product import Dropout, Term, adapted_product
from paretune.study.arms import ArmConfig


class Bank:
    """Adapters of arms that share rank, layers and optimizer, so that one batched product serves.

    Per adapted layer: A [K, d_in, r] and B [K, r, d_out], float32. B starts at zero and A is drawn
    as PEFT draws it (Kaiming uniform with a = sqrt 5, so U(-1/sqrt(d_in), 1/sqrt(d_in))), from a
    generator of its own for each arm and layer: an arm's start does not depend on its neighbours.

    Args:
        arms: the K arms; ``positions`` are their places in the cohort.
        layers: the adapted layers, by name.
        first_arm: place of the bank's first arm in its pass.
        dtype: what products are computed in.
    """

    def __init__(
        self,
        arms: Sequence[ArmConfig],
        positions: Sequence[int],
        layers: dict[str, Layer],
        device: torch.device,
        *,
        first_arm: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        rank = arms[0].rank
        assert rank is not None
        self.arms = list(arms)
        shapes: dict[str, tuple[int, int]] = {}
        for name, layer in layers.items():
            shapes[f"{name}.A"] = (layer.d_in, rank)
            shapes[f"{name}.B"] = (rank, layer.d_out)
        copied = shapes if dtype == torch.bfloat16 else ()
        self.flat = Flat(positions, shapes, arm_axis=True, device=device, copied=copied)
        self.layers = dict(layers)
        self.first_arm = first_arm
        self.gamma_K11 = torch.tensor([a.gamma for a in arms], device=device)[:, None, None]
        self._gamma = arms[0].gamma if len({a.gamma for a in arms}) == 1 else 0.0
        self.drops = any(a.lora_dropout for a in arms)
        self._rate_K = torch.tensor([a.lora_dropout or 0.0 for a in arms], device=device)
        self._keys_LK = torch.zeros(len(layers), len(arms), dtype=torch.int32, device=device)
        self._first = torch.zeros(1, dtype=torch.int32, device=device)
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
        self.flat.refresh()

    def term(self, name: str, *, drops: bool) -> Term:
        """What this bank adds in one of its layers; with ``drops``, under its arms' dropout.

        A term is made of views: it stays valid while the arms train.
        """
        parameters, compute = self.flat.parameters, self.flat.compute
        dropout = None
        if drops and self.drops:
            index = list(self.layers).index(name)
            dropout = Dropout(self._keys_LK[index], self._rate_K, self._first)
        return Term(
            A=parameters[f"{name}.A"],
            B=parameters[f"{name}.B"],
            A_cast=compute[f"{name}.A"],
            B_cast=compute[f"{name}.B"],
            gamma_K11=self.gamma_K11,
            gamma=self._gamma,
            first_arm=self.first_arm,
            dropout=dropout,
        )

    def draw(self, step: int, first_vector: int) -> None:
        """Set the dropout masks of a step, for a piece that begins at a vector of the batch."""
        if not self.drops:
            return
        indices = [layer.index for layer in self.layers.values()]
        keys = [[key(arm.seed, step, index, 1) for arm in self.arms] for index in indices]
        self._keys_LK.copy_(torch.tensor(keys, dtype=torch.int32), non_blocking=True)
        self._first.fill_(first_vector)


class AdaptedLinear(torch.nn.Module):
    """A frozen linear layer whose input rows belong to several arms, arm-major [K * B, ..., d_in].

    The product with the frozen matrix runs once over all arms' rows; each bank adds its arms'
    low-rank updates to their rows.

    Attributes:
        terms: what is added right now; empty for the frozen base itself.
        count: arms folded into the first axis right now.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self.terms: tuple[Term, ...] = ()
        self.count = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[K * B, ..., d_in] -> [K * B, ..., d_out], in the type of the frozen weight."""
        if not self.terms:
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return adapted_product(x, self.weight, self.bias, self.count, self.terms)
