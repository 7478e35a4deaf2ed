"""A frozen base whose matrices are kept in 4 or 8 bits, through bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        self._unpacked: set[int] = set()  # addresses of matrices that a pass unpacked
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
            weight_OD: torch.Tensor = (self._packed * self._scales[:, None]).to(dtype)
        else:
            weight_OD = _bitsandbytes().dequantize_4bit(self._packed, self._scales).to(dtype)
        self._unpacked.add(weight_OD.untyped_storage().data_ptr())
        return weight_OD

    @contextmanager
    def unpacked_again(self) -> Iterator[None]:
        """Within, autograd keeps no unpacked matrix of this layer: it is unpacked again."""

        def pack(tensor: torch.Tensor) -> Any:
            size = (self.out_features, self.in_features)
            if tensor.dim() != 2 or tensor.requires_grad:
                return tensor
            if tensor.untyped_storage().data_ptr() not in self._unpacked:
                return tensor
            return (tensor.dtype, tuple(tensor.shape) == size and tensor.is_contiguous())

        def unpack(kept: Any) -> torch.Tensor:
            if isinstance(kept, torch.Tensor):
                return kept
            weight_OD = self.dequantised(kept[0])
            return weight_OD if kept[1] else weight_OD.mT

        # Only what is unpacked within: an address may be another tensor's later
        self._unpacked.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
        self._unpacked.clear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + bias, in the type of x."""
        with self.unpacked_again():
            return F.linear(x, self.dequantised(x.dtype), self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantisedLinear:
        """Stay where it was made: scales are not parameters that could be moved along."""
        if self.bias is not None:
            self.bias.data = fn(self.bias.data)
        return self


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


@torch.no_grad()
def round_matrices(model: torch.nn.Module, kind: Kind) -> None:
    """Give each linear layer the matrix that it computes with when quantised, unpacked."""
    for name, layer in linear_layers(model).items():
        module: Any = model.get_submodule(name)
        rounded_OD = QuantisedLinear(weight_of(module), None, kind).dequantised(torch.float32)
        module.weight.copy_(rounded_OD.T if layer.transposed else rounded_OD)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise UserError(
            "base.quantise: needs the package bitsandbytes; "
            "install it with pip install 'paretune[quantise]'"
        ) from error
    return bitsandbytes.functional
