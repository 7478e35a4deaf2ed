"""Biases that are trained beside adapters: which there are, and modules that carry arms' own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.func import functional_call

from paretune.errors import UserError
from paretune.model.outputs import Output
from paretune.model.product import Term


class AddedBias(torch.nn.Module):
    """A frozen module whose bias is added to its outputs at the end, such as a layer norm.

    Attributes:
        output: the arms' biases right now; None: the base's.
        count: arms folded into the first axis right now.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.terms: tuple[Term, ...] = ()
        self.output: Output | None = None
        self.count = 1

    @property
    def bias(self) -> torch.Tensor:
        """The base's bias [D]."""
        bias = self.module.bias
        assert isinstance(bias, torch.Tensor)
        return bias

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[K * B, ...] -> [K * B, ..., D]."""
        if self.output is None:
            plain: torch.Tensor = self.module(x, *args, **kwargs)
            return plain
        y: torch.Tensor = functional_call(
            self.module, {"bias": torch.zeros_like(self.bias)}, (x, *args), kwargs
        )
        y_KND = y.reshape(self.count, -1, y.shape[-1]) + torch.cat(self.output.biases)[:, None]
        return y_KND.to(y.dtype).view(y.shape)


def trained_biases(
    model: torch.nn.Module, bias: str | None, adapted: Collection[str], *, where: str = "bias"
) -> dict[str, int]:
    """Size of each bias that an arm trains, by the name of its module, as PEFT understands it.

    Works on a model on the meta device too.

    Args:
        bias: ``all`` of the base's, ``lora_only`` those of ``adapted`` layers, or None.

    Raises:
        UserError: there are none.
    """
    if bias is None:
        return {}
    found = {
        name.removesuffix(".bias"): parameter.numel()
        for name, parameter in model.named_parameters()
        if name.endswith(".bias") and (bias == "all" or name.removesuffix(".bias") in adapted)
    }
    if not found:
        which = "this base has no biases" if bias == "all" else "the adapted layers have no biases"
        raise UserError(f"{where}: {which}; leave bias out")
    return found


@torch.no_grad()
def adds_its_bias(module: torch.nn.Module) -> bool:
    """Whether a module's bias is added to its outputs at the end, along their last axis."""
    if any(True for _ in module.children()) or not isinstance(module.bias, torch.Tensor):
        return False
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    size = weight.shape[-1]
    x = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    x = x.to(weight.device, weight.dtype)
    try:
        zero = functional_call(module, {"bias": torch.zeros_like(module.bias)}, (x,))
        return torch.allclose(module(x), zero + module.bias, rtol=1e-2, atol=1e-2)
    except (RuntimeError, TypeError):
        return False
