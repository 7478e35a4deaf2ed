"""A copy of a model made for decoding: shared weights, and linear layers that apply many arms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from paretune.model.adapter import AdaptedLinear, Bank
from paretune.model.layers import weight_of

# Up to this rank the updates of layers that share an input are one block-diagonal product; above
# it the zeros would cost more than the launches they save
BLOCK_DIAGONAL_RANK = 64


@dataclass
class Rows:
    """Whose rows the layers see: all arms', arm-major, or those of one arm (``arm``)."""

    count: int
    arm: int | None = None


@dataclass
class Update:
    """The low-rank updates of k neighbouring arms: A [k, d_in, r], B [k, r, d_out]."""

    arms: range
    columns: slice
    A: torch.Tensor
    B: torch.Tensor

    def add(self, x_ND: torch.Tensor, y_NO: torch.Tensor, rows: Rows) -> None:
        """Add (x_k A_k) B_k to the rows of each arm, in place."""
        y_NO = y_NO[:, self.columns]
        if rows.arm is not None:
            if rows.arm in self.arms:
                own = rows.arm - self.arms.start
                y_NO.addmm_(x_ND @ self.A[own], self.B[own])
            return
        part = slice(self.arms.start, self.arms.stop)
        x_KND = x_ND.view(rows.count, -1, x_ND.shape[-1])[part]
        y_KNO = y_NO.view(rows.count, -1, y_NO.shape[-1])[part]
        y_KNO.baddbmm_(torch.bmm(x_KND, self.A), self.B)


@dataclass
class Product:
    """Linear layers that share their input, as one product of d_out = sum of theirs.

    The first of them computes for all; the others take their columns from it.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    sizes: list[int]
    rows: Rows
    updates: list[Update] = field(default_factory=list)
    _input: torch.Tensor | None = None
    _parts: tuple[torch.Tensor, ...] = ()

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """[..., d_in] -> the columns of one layer [..., d_out]."""
        if x is not self._input:
            self._input = x
            self._parts = torch.split(self._compute(x), self.sizes, dim=-1)
        result = self._parts[index]
        if index == len(self.sizes) - 1:
            self._input, self._parts = None, ()
        return result

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        x_ND = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        y_NO = F.linear(x_ND, self.weight, self.bias)
        for update in self.updates:
            update.add(x_ND, y_NO, self.rows)
        return y_NO.view(*x.shape[:-1], -1)


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
        hidden_RD = hidden_RD.to(self.weight.dtype)
        if self.weight.dtype == torch.float32:
            logits = F.linear(hidden_RD, self.weight)
        else:
            logits = torch.mm(hidden_RD, self.weight.T, out_dtype=torch.float32)
        if self.bias is not None:
            logits = logits + self.bias.float()
        return logits[:, None]


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
        product = _product([linears[name] for name in names], rows, dtype)
        product.updates = _updates(names, product.sizes, banks, dtype)
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


def _product(modules: Sequence[Any], rows: Rows, dtype: torch.dtype) -> Product:
    weights = [weight_of(module) for module in modules]
    sizes = [len(weight) for weight in weights]
    joined = (
        weights[0].to(dtype) if len(weights) == 1 else torch.cat([w.to(dtype) for w in weights])
    )
    if len(weights) > 1:
        _share(modules, joined, sizes)
    biases = [getattr(module, "bias", None) for module in modules]
    bias = None
    if any(b is not None for b in biases):
        parts = [
            torch.zeros(size, device=joined.device) if b is None else b.detach()
            for b, size in zip(biases, sizes, strict=True)
        ]
        bias = torch.cat([part.to(dtype) for part in parts])
    return Product(joined, bias, sizes, rows)


def _share(modules: Sequence[Any], joined: torch.Tensor, sizes: Sequence[int]) -> None:
    """Let frozen layers of the same type be views of the joined matrix: one copy in memory."""
    for module, part in zip(modules, torch.split(joined, list(sizes)), strict=True):
        frozen = isinstance(module, AdaptedLinear) and not module.weight.requires_grad
        if frozen and module.weight.dtype == joined.dtype:
            module.weight.data = part


def _updates(
    names: Sequence[str], sizes: Sequence[int], banks: Iterable[Bank], dtype: torch.dtype
) -> list[Update]:
    """The updates of layers that share an input, as few products as their ranks allow."""
    found: list[Update] = []
    start = 0
    for bank in banks:
        arms = range(start, start + len(bank.arms))
        start = arms.stop
        adapted = [name for name in names if name in bank.layers]
        if not adapted:
            continue
        factors = bank.flat.parameters
        A = {name: factors[f"{name}.A"].detach() for name in adapted}
        B = {name: factors[f"{name}.B"].detach() * bank.gamma_K11 for name in adapted}
        offsets = dict(zip(names, [sum(sizes[:i]) for i in range(len(sizes))], strict=True))
        width = dict(zip(names, sizes, strict=True))
        rank = A[adapted[0]].shape[-1]
        if len(adapted) == 1 or rank > BLOCK_DIAGONAL_RANK:
            for name in adapted:
                columns = slice(offsets[name], offsets[name] + width[name])
                found.append(Update(arms, columns, A[name].to(dtype), B[name].to(dtype)))
            continue
        blocks = torch.zeros(
            len(arms), rank * len(adapted), sum(sizes), dtype=dtype, device=A[adapted[0]].device
        )
        for index, name in enumerate(adapted):
            place = slice(offsets[name], offsets[name] + width[name])
            blocks[:, index * rank : (index + 1) * rank, place] = B[name].to(dtype)
        joined = torch.cat([A[name] for name in adapted], dim=-1).to(dtype)
        found.append(Update(arms, slice(0, sum(sizes)), joined, blocks))
    return found
