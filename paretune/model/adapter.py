"""Low-rank adapters with an arm axis: one frozen linear layer, many arms' updates beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F

from paretune.model.biases import AddedBias
from paretune.model.dora import RowLengths
from paretune.model.dropout import key
from paretune.model.flat import Flat
from paretune.model.layers import Layer
from paretune.model.outputs import Output, Scale, finished
from paretune.model.pissa import Anchor, LeadingVectors
from paretune.model.product import Dropout, Term
from paretune.model.product_operator import adapted_product
from paretune.model.quantised import QuantisedLinear
from paretune.study.arms import ArmConfig

Frozen: TypeAlias = "AdaptedLinear | AddedBias"


class Bank:
    """Adapters of arms that share rank, layers, optimizer and variant, for one batched product.

    Per adapted layer: A [K, d_in, r] and B [K, r, d_out], float32. B starts at zero and A is drawn
    as PEFT draws it (Kaiming uniform with a = sqrt 5, so U(-1/sqrt(d_in), 1/sqrt(d_in))), from a
    generator of its own for each arm and layer: an arm's start does not depend on its neighbours.
    PiSSA arms start elsewhere (``pissa``); DoRA arms have a magnitude [K, d_out] a layer too, and
    any arm may train biases.

    Args:
        arms: the K arms; ``positions`` are their places in the cohort.
        layers: the adapted layers, by name.
        frozen: the modules of the base that carry what is trained, by name.
        leading: singular vectors of the base, where the arms are PiSSA's.
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
        frozen: Mapping[str, Frozen],
        biases: Mapping[str, int],
        leading: LeadingVectors | None = None,
        first_arm: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.arms = list(arms)
        self.layers = dict(layers)
        self.biases = tuple(biases)
        shapes = trained_shapes(arms[0], layers.values(), biases)
        factors = [name for name in shapes if name.endswith((".A", ".B"))]
        copied = factors if dtype == torch.bfloat16 else ()
        self.flat = Flat(positions, shapes, arm_axis=True, device=device, copied=copied)
        self.first_arm = first_arm
        self.gamma_K11 = torch.tensor([a.gamma for a in arms], device=device)[:, None, None]
        self._minus_K11 = -self.gamma_K11
        self._gamma = arms[0].gamma if len({a.gamma for a in arms}) == 1 else 0.0
        self.drops = any(a.lora_dropout for a in arms)
        self._rate_K = torch.tensor([a.lora_dropout or 0.0 for a in arms], device=device)
        self._keys_LK = torch.zeros(len(layers), len(arms), dtype=torch.int32, device=device)
        self._first = torch.zeros(1, dtype=torch.int32, device=device)
        self._frozen = frozen
        self.anchor = None if leading is None else Anchor(arms, layers, leading, device, dtype)
        matrices = {name: matrix_of(frozen, name) for name in layers}
        self._lengths = RowLengths(matrices, len(arms)) if arms[0].dora else None
        self.reset()

    def reset(self) -> None:
        """Set every arm to its initial weights."""
        self.flat.values.zero_()
        for row, arm in enumerate(self.arms):
            tensors = self.flat.tensors(row)
            for index, (name, layer) in enumerate(self.layers.items()):
                if self.anchor is not None:
                    for part in "AB":
                        tensors[f"{name}.{part}"].copy_(self.anchor.tensors[f"{name}.{part}0"][row])
                else:
                    generator = torch.Generator().manual_seed(key(arm.seed, index) & 0xFFFFFFFF)
                    bound = layer.d_in**-0.5
                    drawn_rD = torch.rand(arm.rank or 1, layer.d_in, generator=generator)
                    tensors[f"{name}.A"].copy_(((drawn_rD * 2 - 1) * bound).T)
                if self._lengths is not None:
                    tensors[f"{name}.magnitude"].copy_(self._lengths.of_base(name))
            for name in self.biases:
                bias = self._frozen[name].bias
                assert bias is not None
                tensors[f"{name}.bias"].copy_(bias.detach())
        self.flat.refresh()

    def terms(self, name: str, *, drops: bool) -> list[Term]:
        """What this bank adds in one of its layers; with ``drops``, under its arms' dropout.

        Terms are made of views: they stay valid while the arms train.
        """
        parameters, compute = self.flat.parameters, self.flat.compute
        term = Term(
            A=parameters[f"{name}.A"],
            B=parameters[f"{name}.B"],
            A_cast=compute[f"{name}.A"],
            B_cast=compute[f"{name}.B"],
            gamma_K11=self.gamma_K11,
            gamma=self._gamma,
            first_arm=self.first_arm,
            dropout=self._dropout(name, drops=drops),
        )
        if self.anchor is None:
            return [term]
        return [term, self.anchor.term(name, self._minus_K11, -self._gamma, self.first_arm)]

    def scale(self, name: str, *, drops: bool) -> Scale:
        """The factor of this bank's arms on a layer's outputs: DoRA's, or 1."""
        if self._lengths is None or name not in self.layers:
            return Scale(len(self.arms))
        return Scale(
            len(self.arms),
            self.flat.parameters[f"{name}.magnitude"],
            self._lengths.norms[name],
            self._dropout(name, drops=drops),
        )

    def bias(self, name: str) -> torch.Tensor | None:
        """Biases [K, d_out] of a layer for this bank's arms: their own, or the base's."""
        if name in self.biases:
            return self.flat.parameters[f"{name}.bias"]
        bias = self._frozen[name].bias
        return None if bias is None else bias.detach().float().expand(len(self.arms), -1)

    @property
    def biases_elsewhere(self) -> bool:
        """Whether biases are trained of other modules than linear layers."""
        return any(not isinstance(self._frozen[name], AdaptedLinear) for name in self.biases)

    def changes_outputs(self, name: str) -> bool:
        """Whether arms of this bank scale a layer's outputs, or train its bias."""
        return name in self.biases or (self._lengths is not None and name in self.layers)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [K, d_in, r] and gamma B [K, r, d_out] of a layer's whole change, float32.

        PiSSA's is of rank 2r: [A, A0] and gamma [B; -B0].
        """
        parameters = self.flat.parameters
        A, B = parameters[f"{name}.A"].detach(), parameters[f"{name}.B"].detach() * self.gamma_K11
        if self.anchor is None:
            return A, B
        A0, B0 = self.anchor.tensors[f"{name}.A0"], self.anchor.tensors[f"{name}.B0"]
        return torch.cat([A, A0], dim=2), torch.cat([B, B0 * -self.gamma_K11], dim=1)

    def measure(self) -> None:
        """Bring DoRA's norms in line with the factors, where these have changed."""
        if self._lengths is not None:
            self._lengths.measure(self.flat.changes, self.factors)

    def _dropout(self, name: str, *, drops: bool) -> Dropout | None:
        if not (drops and self.drops):
            return None
        return Dropout(self._keys_LK[list(self.layers).index(name)], self._rate_K, self._first)

    def draw(self, step: int, first_vector: int) -> None:
        """Set the dropout masks of a step, for a piece that begins at a vector of the batch."""
        if not self.drops:
            return
        indices = [layer.index for layer in self.layers.values()]
        keys = [[key(arm.seed, step, index, 1) for arm in self.arms] for index in indices]
        self._keys_LK.copy_(torch.tensor(keys, dtype=torch.int32), non_blocking=True)
        self._first.fill_(first_vector)


def matrix_of(frozen: Mapping[str, Frozen], name: str) -> Callable[[], torch.Tensor]:
    """What gives the frozen matrix [d_out, d_in] of an adapted layer."""
    layer = frozen[name]
    assert isinstance(layer, AdaptedLinear)
    return layer.matrix


def trained_shapes(
    arm: ArmConfig, layers: Iterable[Layer], biases: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Shapes of what one adapter arm trains; the factors A, whose rate LoRA+ leaves, come first.

    Args:
        layers: those that the arm adapts.
        biases: size of each bias that it trains, by the name of its module.
    """
    layers, rank = list(layers), arm.rank or 1
    shapes: dict[str, tuple[int, ...]] = {f"{layer.name}.A": (layer.d_in, rank) for layer in layers}
    shapes |= {f"{layer.name}.B": (rank, layer.d_out) for layer in layers}
    if arm.dora:
        shapes |= {f"{layer.name}.magnitude": (layer.d_out,) for layer in layers}
    return shapes | {f"{name}.bias": (size,) for name, size in biases.items()}


class AdaptedLinear(torch.nn.Module):
    """A frozen linear layer whose input rows belong to several arms, arm-major [K * B, ..., d_in].

    The product with the frozen matrix runs once over all arms' rows; each bank adds its arms'
    low-rank updates to their rows.

    Attributes:
        terms: what is added right now; empty for the frozen base itself.
        output: what the outputs go through right now, bias included; None: the base's bias.
        count: arms folded into the first axis right now.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self.terms: tuple[Term, ...] = ()
        self.output: Output | None = None
        self.count = 1

    def matrix(self) -> torch.Tensor:
        """The frozen matrix [d_out, d_in] that products are computed with."""
        return self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[K * B, ..., d_in] -> [K * B, ..., d_out], in the type of the frozen weight."""
        weight, bias = self.matrix(), self.bias if self.output is None else None
        if self.terms:
            y = adapted_product(x, weight, bias, self.count, self.terms)
        else:
            y = F.linear(x.to(weight.dtype), weight, bias)
        if self.output is None:
            return y
        return finished(y, x, weight, self.count, self.output)


class AdaptedQuantised(AdaptedLinear):
    """The same over a quantised matrix, which is unpacked in each pass and kept in neither.

    Args:
        packed: the quantised layer.
        dtype: what products are computed in.
    """

    def __init__(self, packed: QuantisedLinear, dtype: torch.dtype) -> None:
        super().__init__(torch.empty(0), None if packed.bias is None else packed.bias.to(dtype))
        self.packed = packed
        self._dtype = dtype

    def matrix(self) -> torch.Tensor:
        """The frozen matrix as it is after rounding, unpacked."""
        return self.packed.dequantised(self._dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[K * B, ..., d_in] -> [K * B, ..., d_out]."""
        with self.packed.unpacked_again():
            return super().forward(x)
