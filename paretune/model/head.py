"""The output head with float32 logits, whatever type its product is computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from paretune.model.arm_axis import ArmModule


def float32_logits(
    hidden: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None
) -> torch.Tensor:
    """[..., D] -> [..., V] in float32: sums of bf16 products are not rounded to bf16 again."""
    if weight_VD.dtype == torch.float32:
        logits = F.linear(hidden.float(), weight_VD)
    else:
        flat_ND = hidden.reshape(-1, hidden.shape[-1]).to(weight_VD.dtype)
        product = torch.mm(flat_ND, weight_VD.T, out_dtype=torch.float32)
        logits = product.view(*hidden.shape[:-1], -1)
    return logits if bias_V is None else logits + bias_V.float()


@contextmanager
def float32_head(model: Any) -> Iterator[None]:
    """Context in which a model on a GPU gives float32 logits.

    Logits rounded to bf16 put a floor of about 5e-4 nats a token under a divergence. The product's
    inputs stay bf16. On a CPU, and for heads of another kind, nothing changes.
    """
    head = model.get_output_embeddings()
    if isinstance(head, ArmModule):
        with head.float32_outputs():
            yield
        return
    if type(head) is not torch.nn.Linear or not head.weight.is_cuda:
        yield
        return

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", enabled=False):
            return float32_logits(hidden, head.weight.to(torch.bfloat16), head.bias)

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward
