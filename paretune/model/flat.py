"""Trainable tensors of several arms, stored so that one arm is one row of one matrix."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

ALIGNMENT = 32  # elements; products read 128-byte aligned operands fastest


@dataclass
class Part:
    """A stretch of columns of a :class:`Flat`.

    Attributes:
        grad_KC: gradients as autograd accumulates them.
        copy_KC: the bf16 copy of the values, if any.
        sum_KC: float32 sum of bf16 gradients over the pieces of a batch, if it has several.
    """

    columns: slice
    grad_KC: torch.Tensor
    copy_KC: torch.Tensor | None
    sum_KC: torch.Tensor | None = None

    @property
    def total(self) -> torch.Tensor:
        """The gradient of the whole batch."""
        return self.grad_KC if self.sum_KC is None else self.sum_KC


class Flat:
    """Values and gradients of K arms as matrices [K, P]; tensors are views into them.

    A per-arm optimizer, gradient norm or freeze is then a handful of row-wise operations, however
    many tensors an arm has. Each trained view is a leaf whose ``grad`` is the matching view of a
    gradient matrix, so autograd accumulates in place; clear with :meth:`zero_grad`, never by
    setting ``grad`` to None.

    On a GPU products read a bf16 copy of the float32 masters. The optimizer writes it together
    with the masters, which is cheaper than casting in every forward and backward pass.

    Args:
        arms: positions of the K arms in their cohort, one after another.
        shapes: tensor name -> shape of one arm's tensor.
        arm_axis: whether views keep the leading arm axis [K, ...]; False only for K = 1.
        device: where the matrices live.
        copied: names of the tensors that have a bf16 copy.
        train_copies: whether the copies are the leaves, with gradients in bf16 as autocast
            computes them, rather than the masters, with gradients in float32.
    """

    def __init__(
        self,
        arms: Sequence[int],
        shapes: Mapping[str, Sequence[int]],
        *,
        arm_axis: bool,
        device: torch.device,
        copied: Collection[str] = (),
        train_copies: bool = False,
    ) -> None:
        if not arm_axis and len(arms) != 1:
            raise ValueError("without an arm axis there is room for one arm only")
        if list(arms) != list(range(arms[0], arms[0] + len(arms))):
            raise ValueError("arms of one Flat stand side by side")
        self.arms = list(arms)
        self.positions = slice(arms[0], arms[0] + len(arms))
        self.changes = 0  # times that the values were written to
        self._arm_axis = arm_axis
        self.slots = self.layout(shapes, copied)
        ends = {name: at + _aligned(shape) for name, (at, shape) in self.slots.items()}
        offset = max(ends.values(), default=0)
        border = max((ends[name] for name in self.slots if name in copied), default=0)
        count = len(arms)
        self.values = torch.zeros(count, offset, dtype=torch.float32, device=device)
        copy = torch.zeros(count, border, dtype=torch.bfloat16, device=device) if border else None
        cuts = [0, border, offset]
        self.parts: list[Part] = []
        for first, stop in pairwise(cuts):
            if stop == first:
                continue
            own = copy if first < border else None
            dtype = torch.bfloat16 if train_copies and own is not None else torch.float32
            grad = torch.zeros(count, stop - first, dtype=dtype, device=device)
            self.parts.append(Part(slice(first, stop), grad, own))
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.compute: dict[str, torch.Tensor] = {}
        for name, (offset, shape) in self.slots.items():
            part = next(part for part in self.parts if offset < part.columns.stop)
            master = self._view(self.values, offset, shape)
            cast = None if copy is None or name not in copied else self._view(copy, offset, shape)
            leaf = cast if train_copies and cast is not None else master
            self.parameters[name] = torch.nn.Parameter(leaf)
            self.parameters[name].grad = self._view(
                part.grad_KC, offset - part.columns.start, shape
            )
            self.compute[name] = self.parameters[name] if cast is None or leaf is cast else cast

    @staticmethod
    def layout(
        shapes: Mapping[str, Sequence[int]], copied: Collection[str] = ()
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where each tensor lies in an arm's row: its offset and shape; those with copies first."""
        slots: dict[str, tuple[int, tuple[int, ...]]] = {}
        offset = 0
        for name, shape in sorted(shapes.items(), key=lambda item: item[0] not in copied):
            slots[name] = (offset, tuple(shape))
            offset += _aligned(shape)
        return slots

    @property
    def count(self) -> int:
        """Number of trained values of one arm (padding between tensors not counted)."""
        return sum(math.prod(shape) for _, shape in self.slots.values())

    def _view(self, matrix_KP: torch.Tensor, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        flat = matrix_KP[:, offset : offset + math.prod(shape)]
        view = flat.view(len(self.arms), *shape) if self._arm_axis else flat.view(*shape)
        # The same memory, but no view to the compiler: that would trace it from the whole matrix,
        # with symbols for where it lies, which took two thirds of the time to trace a block
        return view.detach()

    def tensors(self, row: int, matrix_KP: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Named views of one arm's row, of the values or of a matrix of the same shape.

        Whoever writes to the values calls :meth:`refresh` after.
        """
        source = self.values if matrix_KP is None else matrix_KP
        return {
            name: source[row, offset : offset + math.prod(shape)].view(*shape)
            for name, (offset, shape) in self.slots.items()
        }

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the bf16 copies in line with the masters."""
        self.changes += 1
        for part in self.parts:
            if part.copy_KC is not None:
                width = part.copy_KC.shape[1]
                part.copy_KC.copy_(self.values[:, :width])

    def zero_grad(self) -> None:
        """Set all gradients to zero in place."""
        for part in self.parts:
            part.grad_KC.zero_()
            if part.sum_KC is not None:
                part.sum_KC.zero_()

    def gather(self) -> None:
        """After a piece that is one of several: sum bf16 gradients in float32."""
        for part in self.parts:
            if part.grad_KC.dtype == torch.float32:
                continue
            if part.sum_KC is None:
                part.sum_KC = torch.zeros_like(part.grad_KC, dtype=torch.float32)
            part.sum_KC.add_(part.grad_KC)
            part.grad_KC.zero_()

    def grad_norm(self) -> torch.Tensor:
        """Euclidean norm [K] of each arm's gradient, in float32."""
        norms_QK = torch.stack(
            [
                torch.linalg.vector_norm(part.total, dim=1, dtype=torch.float32)
                for part in self.parts
            ]
        )
        norm_K: torch.Tensor = torch.linalg.vector_norm(norms_QK, dim=0)
        return norm_K


def _aligned(shape: Sequence[int]) -> int:
    """Columns that a tensor takes up, padding included."""
    return -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT


def compute_type(device: torch.device) -> torch.dtype:
    """What products are computed in: bf16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
