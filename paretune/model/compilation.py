"""What is compiled on a GPU: a model's repeated blocks, and single functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint as again

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def fused(function: Function, *, dynamic: bool = False) -> Function:
    """A function of tensors as one kernel, or as few as the compiler needs; made once.

    Args:
        dynamic: one form for all shapes, rather than a form for each.
    """
    return torch.compile(function, dynamic=dynamic)  # type: ignore[return-value]


def repeated_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that a model stacks: children of its outermost lists of modules of one class."""
    blocks: list[torch.nn.Module] = []
    within: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in within):
            continue
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1:
            children = list(module)
            if all(type(child) is type(children[0]) for child in children):
                blocks += children
                within.append(name + ".")
    return blocks


class Regions:
    """A model's repeated blocks in two forms: as they are, and compiled for fixed shapes.

    Compiling block by block ("regional compilation") fuses what stands between the big products
    just as compiling the whole model does, in a fraction of the time. Scoring meets ever new
    shapes, so it uses the blocks as they are.

    Args:
        backend: the compiler, or ``none``.
    """

    def __init__(self, model: Any, backend: str = "inductor") -> None:
        self._embedding: torch.nn.Module = model.get_input_embeddings()
        self._blocks = repeated_blocks(model)
        self._forms: list[Any] = [block.forward for block in self._blocks]
        self.compiles = backend != "none"
        if self.compiles:
            self._forms = [
                torch.compile(form, dynamic=False, backend=backend) for form in self._forms
            ]

    @contextmanager
    def compiled(self, *, checkpoint: bool = False) -> Iterator[None]:
        """Run the compiled form within.

        Args:
            checkpoint: keep only what enters a block, and compute the rest again in the backward
                pass (activation checkpointing).
        """
        if not self.compiles and not checkpoint:
            yield
            return
        for block, form in zip(self._blocks, self._forms, strict=True):
            block.forward = partial(again, form, use_reentrant=False) if checkpoint else form
        # A first block whose input asks for no gradient would need a compilation of its own
        hook = self._embedding.register_forward_hook(_ask_for_gradient) if self.compiles else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()
            for block in self._blocks:
                del block.forward


def _ask_for_gradient(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output if output.requires_grad else output.requires_grad_()
