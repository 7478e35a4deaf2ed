"""A model's repeated blocks, compiled on a GPU for fixed shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch._dynamo import lookup_backend
from torch._functorch import config as partitioning
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint as again

from paretune.model.compilation import FORMS, forms_allowed, repeated_blocks
from paretune.model.merging import merge_products


@dataclass(frozen=True)
class Compiler:
    """How blocks are compiled.

    Attributes:
        backend: of ``torch.compile``, or ``none``, to which the rest is nothing.
        merge: make one product of adapted products that take the same input.
        recompute: keep fewer activations: what follows elementwise or by a norm from others that
            are kept is computed again in the backward pass, even where it has to be written to
            memory there. It saves the inputs of linear layers other than an attention's output.

    On an H200 both together take as long as neither, and recomputing saves 15 to 20% of a LoRA
    cohort's memory (``benchmarks/cohort_switches.py``).
    """

    backend: str = "inductor"
    merge: bool = True
    recompute: bool = True

    def __call__(self, block: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile a traced block, as ``torch.compile`` asks its backends to."""
        if self.merge:
            merge_products(block)
        with partitioning.patch(ban_recompute_materialized_backward=not self.recompute):
            compiled: Callable[..., Any] = lookup_backend(self.backend)(block, list(inputs))
        return compiled


class Regions:
    """A model's repeated blocks in two forms: as they are, and compiled for fixed shapes.

    Compiling block by block ("regional compilation") fuses what stands between the big products
    just as compiling the whole model does, in a fraction of the time. Training and packed scoring
    use the compiled form; other scoring meets ever new shapes and uses the blocks as they are.

    Args:
        compiler: how; by default ``inductor``, with products merged and activations recomputed.
    """

    _made: ClassVar[int] = 0

    def __init__(self, model: Any, compiler: Compiler | None = None) -> None:
        compiler = compiler or Compiler()
        self._embedding: torch.nn.Module = model.get_input_embeddings()
        self._blocks = repeated_blocks(model)
        self._forms: list[Any] = [block.forward for block in self._blocks]
        self.compiles = compiler.backend != "none"
        if self.compiles:
            Regions._made += 1
            self._forms = [
                torch.compile(form, dynamic=False, backend=compiler) for form in self._forms
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
        # A first block whose input alone asks for no gradient would be compiled on its own
        hook = self._embedding.register_forward_hook(_ask_for_gradient) if self.compiles else None
        try:
            # Models of one class share their code, and with it torch's limit. Each has a limit of
            # its own here; none at all would never give up on code that is another at each step
            with forms_allowed(FORMS * Regions._made) if self.compiles else nullcontext():
                yield
        finally:
            if hook is not None:
                hook.remove()
            for block in self._blocks:
                del block.forward


def _ask_for_gradient(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    asks = output.requires_grad or not torch.is_grad_enabled()
    return output if asks else output.requires_grad_()
