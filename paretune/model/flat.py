"""Trainable tensors of several arms, stored so that one arm is one row of one matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

_ALIGNMENT = 32  # elements; products read 128-byte aligned operands fastest


class Flat:
    """Values and gradients of K arms as two matrices [K, P]; tensors are views into them.

    A per-arm optimizer, gradient norm or freeze is then a handful of row-wise operations, however
    many tensors an arm has. Each view is a leaf whose ``grad`` is the matching view of the
    gradient matrix, so autograd accumulates in place; clear with :meth:`zero_grad`, never by
    setting ``grad`` to None.

    Args:
        arms: positions of the K arms in their cohort.
        shapes: tensor name -> shape of one arm's tensor.
        arm_axis: whether views keep the leading arm axis [K, ...]; False only for K = 1.
        device: where the matrices live; always float32 (master weights).
    """

    def __init__(
        self,
        arms: Sequence[int],
        shapes: Mapping[str, Sequence[int]],
        *,
        arm_axis: bool,
        device: torch.device,
    ) -> None:
        if not arm_axis and len(arms) != 1:
            raise ValueError("without an arm axis there is room for one arm only")
        self.arms = list(arms)
        self.slots: dict[str, tuple[int, tuple[int, ...]]] = {}
        offset = 0
        for name, shape in shapes.items():
            self.slots[name] = (offset, tuple(shape))
            offset += -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
        self.values = torch.zeros(len(arms), offset, dtype=torch.float32, device=device)
        self.grad = torch.zeros_like(self.values)
        self._arm_axis = arm_axis
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for name in self.slots:
            parameter = torch.nn.Parameter(self._view(self.values, name))
            parameter.grad = self._view(self.grad, name)
            self.parameters[name] = parameter

    @property
    def count(self) -> int:
        """Number of trained values of one arm (padding between tensors not counted)."""
        return sum(math.prod(shape) for _, shape in self.slots.values())

    def _view(self, matrix_KP: torch.Tensor, name: str) -> torch.Tensor:
        offset, shape = self.slots[name]
        flat = matrix_KP[:, offset : offset + math.prod(shape)]
        return flat.view(len(self.arms), *shape) if self._arm_axis else flat.view(*shape)

    def tensors(self, row: int, matrix_KP: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Named views of one arm's row, of the values or of a matrix of the same shape."""
        source = self.values if matrix_KP is None else matrix_KP
        return {
            name: source[row, offset : offset + math.prod(shape)].view(*shape)
            for name, (offset, shape) in self.slots.items()
        }

    def zero_grad(self) -> None:
        """Set all gradients to zero in place."""
        self.grad.zero_()
