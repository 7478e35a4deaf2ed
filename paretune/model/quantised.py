"""A frozen base whose matrices are kept in 4 or 8 bits, through bitsandbytes."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F

from paretune.errors import UserError
from paretune.model.layers import linear_layers, weight_of

Kind = Literal["nf4", "int8"]
# QLoRA's (Dettmers et al., 2023, arXiv 2305.14314): NF4 in blocks of 64, their scales in 8 bits
_BLOCK = 64


class QuantisedLinear(torch.nn.Module):
    """A frozen linear layer that keeps its matrix quantised and computes with it rounded so.

    ``nf4``: 4-bit NormalFloat with double quantisation (0.52 bytes a weight). ``int8``: rows
    scaled by their largest entry (1 byte a weight); activations are not quantised, unlike in
    LLM.int8().

    Args:
        weight_OD: the matrix [d_out, d_in], on the device where it is to stay.
        transposed: the base stores its matrices as [d_in, d_out], as GPT-2 does.
    """

    def __init__(
        self,
        weight_OD: torch.Tensor,
        bias_O: torch.Tensor | None,
        kind: Kind,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        functional = _bitsandbytes()
        self.out_features, self.in_features = weight_OD.shape
        self.kind = kind
        self.transposed = transposed
        self.bias = None if bias_O is None else torch.nn.Parameter(bias_O, requires_grad=False)
        if kind == "nf4":
            self._packed, self._scales = functional.quantize_4bit(
                weight_OD.contiguous(),
                blocksize=_BLOCK,
                compress_statistics=True,
                quant_type="nf4",
            )
        else:
            self._packed, largest_O, _ = functional.int8_vectorwise_quant(weight_OD.half())
            self._scales = largest_O / 127

    @property
    def nbytes(self) -> int:
        """Bytes that the matrix takes."""
        if self.kind == "int8":
            return int(self._packed.nbytes + self._scales.nbytes)
        state = self._scales
        parts = [state.absmax, state.state2.absmax, state.code, state.state2.code]
        return int(self._packed.nbytes + sum(part.nbytes for part in parts))

    @torch.no_grad()
    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [d_out, d_in] that the layer computes with."""
        if self.kind == "int8":
            return (self._packed * self._scales[:, None]).to(dtype)
        weight: torch.Tensor = _bitsandbytes().dequantize_4bit(self._packed, self._scales)
        return weight.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + bias, in the type of autocast where it is on."""
        dtype = torch.get_autocast_dtype(x.device.type) if _autocast(x) else x.dtype
        y: torch.Tensor = _FrozenProduct.apply(x.to(dtype), self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantisedLinear:
        """Stay where it was made: scales are not parameters that could be moved along."""
        if self.bias is not None:
            self.bias.data = fn(self.bias.data)
        return self


class _FrozenProduct(torch.autograd.Function):
    """x W^T that keeps nothing: the backward pass dequantises again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantised(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ ctx.layer.dequantised(grad.dtype), None


def quantise(model: torch.nn.Module, kind: Kind, device: torch.device) -> None:
    """Put a :class:`QuantisedLinear` on ``device`` in the place of each linear layer, in place.

    As usual the output head, embeddings and norms stay as they are.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    for name, layer in linear_layers(model).items():
        module: Any = model.get_submodule(name)
        bias = getattr(module, "bias", None)
        new = QuantisedLinear(
            weight_of(module).to(device),
            None if bias is None else bias.detach().to(device),
            kind,
            transposed=layer.transposed,
        )
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise UserError(
            "base.quantise: needs the package bitsandbytes; "
            "install it with pip install 'paretune[quantise]'"
        ) from error
    return bitsandbytes.functional


def _autocast(x: torch.Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
