"""A copy of a model made for decoding: shared weights, and linear layers that apply many arms."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from paretune.model.adapter import AdaptedLinear, Bank
from paretune.model.head import float32_logits
from paretune.model.layers import weight_of
from paretune.model.outputs import factor

# Up to this rank the updates of layers that share an input are one block-diagonal product; above
# it the zeros would cost more than the launches they save
BLOCK_DIAGONAL_RANK = 64
# Rows of A that may stand below a matrix, as a share of it: with many arms of high rank, what each
# A makes of other arms' rows would cost more than a product of its own
MOST_BESIDE = 0.25


@dataclass
class Rows:
    """Whose rows the layers see: all arms', arm-major, or those of one arm (``arm``)."""

    count: int
    arm: int | None = None


@dataclass
class Update:
    """The low-rank updates of k neighbouring arms: A [k, r, d_in], B [k, r, d_out].

    Attributes:
        columns: of the joined output that B adds to.
        beside: where the products with the k A stand beside the joined output, one after another;
            None where A is a product of its own.
    """

    arms: range
    columns: slice
    A: torch.Tensor
    B: torch.Tensor
    beside: int | None = None


@dataclass
class Product:
    """Linear layers that share their input, as one product of d_out = sum of theirs.

    The first of them computes for all; the others take their columns from it. ``weight`` is
    [d_out + beside, d_in]: small A stand below the joined matrices, so that one product gives what
    all arms' A make of all rows, and each arm's part is taken from it.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    sizes: list[int]
    rows: Rows
    updates: list[Update] = field(default_factory=list)
    scale_KO: torch.Tensor | None = None  # of DoRA
    bias_KO: torch.Tensor | None = None  # where arms train biases or scale their outputs
    _input: torch.Tensor | None = None
    _parts: tuple[torch.Tensor, ...] = ()

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """[..., d_in] -> the columns of one layer [..., d_out]."""
        if x is not self._input:
            x_ND = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
            arm = self.rows.arm
            parts = self._of_all(x_ND) if arm is None else self._of_one(x_ND, arm)
            self._input, self._parts = x, tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in parts)
        result = self._parts[index]
        if index == len(self.sizes) - 1:
            self._input, self._parts = None, ()
        return result

    def _of_all(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All arms' rows, few of each: one product, of which the parts are columns."""
        width = sum(self.sizes)
        whole_NW = F.linear(x_ND, self.weight)
        for update in self.updates:
            self._add_all(update, x_ND, whole_NW)
        y_NO = whole_NW[:, :width]
        if self.scale_KO is not None or self.bias_KO is not None:
            y_KNO = self._per_arm(y_NO.view(self.rows.count, -1, width), slice(None), slice(None))
            y_NO = y_KNO.reshape(-1, width)
        if self.bias is not None:
            y_NO += self.bias
        return torch.split(y_NO, self.sizes, dim=-1)

    def _of_one(self, x_ND: torch.Tensor, arm: int) -> list[torch.Tensor]:
        """Many rows of one arm: a product for each part, so that what follows reads whole rows."""
        updates = [
            (update, x_ND @ update.A[arm - update.arms.start].T)
            for update in self.updates
            if arm in update.arms
        ]
        parts = []
        for end, size in zip(itertools.accumulate(self.sizes), self.sizes, strict=True):
            own = slice(end - size, end)
            y_NO = F.linear(x_ND, self.weight[own], None if self.bias is None else self.bias[own])
            for update, h_Nr in updates:
                columns = range(*update.columns.indices(sum(self.sizes)))
                if own.start in columns:
                    shifted = slice(own.start - columns.start, own.stop - columns.start)
                    y_NO.addmm_(h_Nr, update.B[arm - update.arms.start][:, shifted])
            parts.append(self._per_arm(y_NO[None], slice(arm, arm + 1), own)[0])
        return parts

    def _add_all(self, update: Update, x_ND: torch.Tensor, whole_NW: torch.Tensor) -> None:
        """Add (x_k A_k) B_k to the rows of each arm k, in place."""
        per_arm = len(x_ND) // self.rows.count
        part = slice(update.arms.start, update.arms.stop)
        y_KNO = whole_NW.view(self.rows.count, per_arm, -1)[part, :, update.columns]
        if update.beside is None:
            x_KND = x_ND.view(self.rows.count, per_arm, -1)[part]
            h_KNr = torch.bmm(x_KND, update.A.mT)
        else:
            k, rank, _ = update.A.shape
            row = whole_NW.stride(0)
            first = update.arms.start * per_arm * row + update.beside
            # Arm k's rows at arm k's columns
            h_KNr = whole_NW.as_strided((k, per_arm, rank), (per_arm * row + rank, row, 1), first)
        y_KNO.baddbmm_(h_KNr, update.B)

    def _per_arm(self, y: torch.Tensor, arms: slice, columns: slice) -> torch.Tensor:
        """Outputs [k, N, O] of some arms and columns, scaled and shifted by what the arms have."""
        dtype = y.dtype
        if self.scale_KO is not None:
            y = y * self.scale_KO[arms, None, columns]
        if self.bias_KO is not None:
            y = y + self.bias_KO[arms, None, columns]
        return y.to(dtype)


class Member(torch.nn.Module):
    """One linear layer of a :class:`Product`, in the place of the original."""

    def __init__(self, product: Product, index: int) -> None:
        super().__init__()
        self._product = product
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d_in] -> [..., d_out]."""
        return self._product.part(x, self._index)


class Head(torch.nn.Module):
    """The output head at one position of each row, with logits in float32.

    Attributes:
        last_R: the positions [R]; None takes the last one of every row.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self.last_R: torch.Tensor | None = None

    def forward(self, hidden_RSD: torch.Tensor) -> torch.Tensor:
        """[R, S, D] -> [R, 1, V] float32."""
        if self.last_R is None:
            hidden_RD = hidden_RSD[:, -1]
        else:
            hidden_RD = hidden_RSD[
                torch.arange(len(hidden_RSD), device=self.last_R.device), self.last_R
            ]
        return float32_logits(hidden_RD, self.weight, self.bias)[:, None]


def is_linear(module: torch.nn.Module) -> bool:
    """Whether :func:`twin` replaces a module: the layer types that adapters know."""
    return isinstance(module, AdaptedLinear | Conv1D) or type(module) is torch.nn.Linear


def twin(
    model: Any,
    banks: Sequence[Bank],
    rows: Rows,
    dtype: torch.dtype,
    run: Callable[[Any], object],
) -> tuple[Any, Head]:
    """A model for decoding that shares the memory of ``model``, and its head.

    Args:
        banks: the arms' adapters, in the order of their rows.
        dtype: of the products.
        run: gives a model a short forward pass, which shows what layers share an input.
    """
    head = model.get_output_embeddings()
    linears = {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and module is not head
    }
    places: dict[int, torch.nn.Module] = {}
    for names in _sharing(linears, lambda: run(model)):
        product = _product(names, [linears[name] for name in names], banks, rows, dtype)
        if any(bank.changes_outputs(name) for bank in banks for name in names):
            modules = {name: linears[name] for name in names}
            product.scale_KO, product.bias_KO = _outputs(modules, product.sizes, banks)
            product.bias = None
        for index, name in enumerate(names):
            places[id(linears[name])] = Member(product, index)
    new_head = Head(weight_of(head).to(dtype), getattr(head, "bias", None))
    places[id(head)] = new_head
    # deepcopy takes what its memo holds: weights stay shared, and layers are exchanged
    memo: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo | places), new_head


def _sharing(linears: dict[str, torch.nn.Module], run: Callable[[], object]) -> list[list[str]]:
    """Neighbours in the order of a forward pass that were called with the very same tensor."""
    calls: list[tuple[str, torch.Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda _module, inputs, name=name: calls.append((name, inputs[0]))
        )
        for name, module in linears.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[list[str]] = []
    last: torch.Tensor | None = None
    times = dict.fromkeys(linears, 0)
    for name, x in calls:
        times[name] += 1
        if x is last:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = x
    joined: list[list[str]] = []
    for group in groups:
        # A layer that runs more than once in a pass stays by itself
        joined += [group] if all(times[name] == 1 for name in group) else [[n] for n in group]
    seen = {name for group in joined for name in group}
    joined += [[name] for name in linears if name not in seen]
    unique = {tuple(group): group for group in joined}
    return list(unique.values())


def _product(
    names: Sequence[str],
    modules: Sequence[Any],
    banks: Iterable[Bank],
    rows: Rows,
    dtype: torch.dtype,
) -> Product:
    weights = [weight_of(module).to(dtype) for module in modules]
    sizes = [len(weight) for weight in weights]
    updates = _updates(names, sizes, banks, dtype)
    room = int(MOST_BESIDE * sum(sizes))
    beside: list[torch.Tensor] = []
    for update in updates:
        if update.A.shape[0] * update.A.shape[1] <= room:
            update.beside = sum(sizes) + sum(len(A) for A in beside)
            beside.append(update.A.flatten(0, 1))
            room -= len(beside[-1])
    # A copy, even of frozen weights: a training step's CUDA graph holds the address of the original
    joined = torch.cat([*weights, *beside]) if len(weights) > 1 or beside else weights[0]
    biases = [getattr(module, "bias", None) for module in modules]
    bias = None
    if any(b is not None for b in biases):
        parts = [
            torch.zeros(size, device=joined.device) if b is None else b.detach()
            for b, size in zip(biases, sizes, strict=True)
        ]
        bias = torch.cat([part.to(dtype) for part in parts])
    return Product(joined, bias, sizes, rows, updates)


def _updates(
    names: Sequence[str], sizes: Sequence[int], banks: Iterable[Bank], dtype: torch.dtype
) -> list[Update]:
    """The updates of layers that share an input, in as few products as their ranks allow."""
    ends = list(itertools.accumulate(sizes))
    columns = {
        name: slice(end - size, end) for name, size, end in zip(names, sizes, ends, strict=True)
    }
    found: list[Update] = []
    start = 0
    for bank in banks:
        arms = range(start, start + len(bank.arms))
        start = arms.stop
        adapted = [name for name in names if name in bank.layers]
        factors = [bank.factors(name) for name in adapted]
        A = [a.mT.to(dtype) for a, _ in factors]
        B = [b.to(dtype) for _, b in factors]
        if len(adapted) < 2 or A[0].shape[1] > BLOCK_DIAGONAL_RANK:
            found += [
                Update(arms, columns[name], a, b) for name, a, b in zip(adapted, A, B, strict=True)
            ]
            continue
        rank = A[0].shape[1]
        blocks = B[0].new_zeros(len(arms), rank * len(adapted), sum(sizes))
        for index, (name, b) in enumerate(zip(adapted, B, strict=True)):
            blocks[:, index * rank : (index + 1) * rank, columns[name]] = b
        found.append(Update(arms, slice(0, sum(sizes)), torch.cat(A, dim=1), blocks))
    return found


def _outputs(
    modules: Mapping[str, Any], sizes: Sequence[int], banks: Sequence[Bank]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Factors and biases [K, d_out] of layers that share an input, side by side."""
    scales, biases = [], []
    for (name, module), size in zip(modules.items(), sizes, strict=True):
        frozen = getattr(module, "bias", None)
        of_layer = []
        for bank in banks:
            bank.measure()
            scales_of = bank.scale(name, drops=False)
            of_layer.append(factor(scales_of, size, module.weight.device).detach())
        scales.append(torch.cat(of_layer))
        own = [
            bank.flat.parameters[f"{name}.bias"].detach()
            if name in bank.biases
            else torch.zeros(len(bank.arms), size, device=module.weight.device)
            if frozen is None
            else frozen.detach().float().expand(len(bank.arms), size)
            for bank in banks
        ]
        biases.append(torch.cat(own))
    bias_KO = torch.cat(biases, dim=1)
    return torch.cat(scales, dim=1), bias_KO if bias_KO.any() else None
