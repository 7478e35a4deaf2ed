"""Cross-entropy of several arms from their last hidden states, without all their logits at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from paretune.model.compilation import fused_on_gpu
from paretune.study.memory import SLICE_BYTES, SLICE_BYTES_TRAINED

IGNORED = -100
# Shares of a piece's positions that can be those with a label, where shapes are fixed
PARTS = 4


def arm_losses(
    hidden_NSD: torch.Tensor,
    head_VD: torch.Tensor | None,
    bias_V: torch.Tensor | None,
    labels_NS: torch.Tensor,
    weight_K: torch.Tensor,
    labelled_C: torch.Tensor | None = None,
    into_VD: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum [K] of each arm's token losses in nats, differentiable.

    Logits are made, turned into gradients and dropped a slice of tokens at a time, so memory holds
    one slice and never K x B x S x V. As in transformers, logits have the type of the product and
    the softmax is float32.

    Args:
        hidden_NSD: arm-major rows [K * B, S, D].
        head_VD: the output head; it may be trained. None: ``hidden_NSD`` holds logits already.
        labels_NS: the token each position predicts, or IGNORED.
        weight_K: factor of each arm's sum, such as 1 / (number of its labels).
        labelled_C: positions among the K * B * S, each once, that include all those with a label:
            the head is computed for no others. None: for all.
        into_VD: where the gradient of one arm's head is added to, instead of handing it to
            autograd, which would add once more; float32.
    """
    if head_VD is None:
        losses_T = F.cross_entropy(
            hidden_NSD.float().flatten(0, 1), labels_NS.flatten(), reduction="none"
        )
        return losses_T.view(len(weight_K), -1).sum(dim=1) * weight_K
    losses: torch.Tensor = _ArmLosses.apply(  # type: ignore[no-untyped-call]
        hidden_NSD, head_VD, bias_V, labels_NS, weight_K, labelled_C, into_VD
    )
    return losses


def next_tokens(ids_NS: torch.Tensor, loss_mask_NS: torch.Tensor) -> torch.Tensor:
    """Labels [N, S]: the next token where it counts in the loss, else IGNORED."""
    labels = torch.full_like(ids_NS, IGNORED)
    labels[:, :-1] = ids_NS[:, 1:].masked_fill(~loss_mask_NS[:, 1:], IGNORED)
    return labels


def slice_tokens(total: int, vocabulary: int, kind: str, *, trained: bool, parts: int = 1) -> int:
    """Positions in a slice of the loss, of ``total``: as many as its bytes allow, evenly.

    Args:
        kind: the device's type.
        trained: whether the head is.
        parts: at least so many slices; with more than one, they are of one size where they can.
    """
    limit = (SLICE_BYTES_TRAINED if trained else SLICE_BYTES)[kind]
    slices = max(parts, -(-total // max(1, limit // (4 * vocabulary))))
    if parts > 1:
        slices = next((n for n in range(slices, 2 * slices) if total % n == 0), slices)
    return -(-total // slices)


class _ArmLosses(torch.autograd.Function):
    """Gradients are computed with the loss: the logits are there, and each is needed once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NSD: torch.Tensor,
        head_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_NS: torch.Tensor,
        weight_K: torch.Tensor,
        labelled_C: torch.Tensor | None,
        into_VD: torch.Tensor | None,
    ) -> torch.Tensor:
        device = hidden_NSD.device
        dtype = torch.bfloat16 if device.type == "cuda" else hidden_NSD.dtype
        hidden_TD = hidden_NSD.reshape(-1, hidden_NSD.shape[-1]).to(dtype)
        head = head_VD.to(dtype)
        bias = None if bias_V is None else bias_V.to(dtype)
        labels_T = labels_NS.reshape(-1)
        count, total = weight_K.shape[0], labels_T.shape[0]
        weight_T = weight_K.repeat_interleave(total // count, output_size=total)
        wants_x, wants_head, wants_bias = ctx.needs_input_grad[:3]
        # What is not computed has no loss and no gradient
        new = torch.empty_like if labelled_C is None else torch.zeros_like
        grad_TD = new(hidden_TD) if wants_x else None
        grad_VD: torch.Tensor | None = None
        grad_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None else None
        losses_T = new(weight_T)
        chosen = total if labelled_C is None else len(labelled_C)
        parts = 1 if labelled_C is None else PARTS
        size = slice_tokens(total, len(head), device.type, trained=wants_head, parts=parts)
        for first in range(0, chosen, size):
            part = slice(first, min(first + size, chosen))
            at = part if labelled_C is None else labelled_C[part]
            own_TD = hidden_TD[at]
            logits = F.linear(own_TD, head, bias)
            losses_T[at], grad = _losses_and_gradient(logits, labels_T[at], weight_T[at])
            if grad_TD is not None and labelled_C is None:
                torch.matmul(grad, head, out=grad_TD[part])
            elif grad_TD is not None:
                grad_TD[at] = grad @ head
            if wants_head:
                own_VD = grad.T @ own_TD
                if grad_VD is not None:
                    grad_VD = grad_VD.float().add_(own_VD)
                else:
                    grad_VD = own_VD if into_VD is not None else own_VD.float()
            if grad_V is not None and wants_bias:
                grad_V += grad.sum(0, dtype=torch.float32)
        ctx.save_for_backward(grad_TD, grad_VD, grad_V if wants_bias else None)
        ctx.like = hidden_NSD.shape, hidden_NSD.dtype, head_VD.dtype
        ctx.into = into_VD
        return losses_T.view(count, -1).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, grad_K: torch.Tensor) -> tuple[Any, ...]:
        grad_TD, grad_VD, grad_V = ctx.saved_tensors
        shape, dtype, head_dtype = ctx.like
        if grad_VD is not None and ctx.into is not None:
            ctx.into.addcmul_(grad_VD, grad_K)
            grad_VD = None
        for grad in (grad_TD, grad_VD, grad_V):
            if grad is not None:
                # A trained head belongs to one arm, so that its factor is the only one
                grad.view(len(grad_K), -1).mul_(grad_K[:, None])
        grad_x = None if grad_TD is None else grad_TD.view(shape).to(dtype)
        head = None if grad_VD is None else grad_VD.to(head_dtype)
        return grad_x, head, grad_V, None, None, None, None


def _loss_and_gradient(
    logits_TV: torch.Tensor, labels_T: torch.Tensor, weight_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted losses [T] and their gradient by the logits [T, V], in the logits' type."""
    logits, log_sum_T = logits_TV.float(), torch.logsumexp(logits_TV.float(), dim=-1)
    scale_T, index_T1 = _scale_and_index(labels_T, weight_T)
    losses = (log_sum_T - logits.gather(1, index_T1)[:, 0]) * scale_T
    columns = torch.arange(logits.shape[1], device=logits.device)
    grad = torch.exp(logits - log_sum_T[:, None]) - (columns == index_T1).float()
    return losses, (grad * scale_T[:, None]).to(logits_TV.dtype)


def _step_by_step(
    logits_TV: torch.Tensor, labels_T: torch.Tensor, weight_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from kernels of torch that are fused already, faster where nothing is compiled."""
    scale_T, index_T1 = _scale_and_index(labels_T, weight_T)
    grad = F.log_softmax(logits_TV.float(), dim=-1)
    losses = -grad.gather(1, index_T1)[:, 0] * scale_T
    grad.exp_().scatter_add_(1, index_T1, grad.new_full((1, 1), -1.0).expand_as(index_T1))
    return losses, grad.mul_(scale_T[:, None]).to(logits_TV.dtype)


_losses_and_gradient = fused_on_gpu(_loss_and_gradient, on_cpu=_step_by_step)


def _scale_and_index(
    labels_T: torch.Tensor, weight_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.where(labels_T != IGNORED, weight_T, 0.0), labels_T.clamp(min=0)[:, None]
