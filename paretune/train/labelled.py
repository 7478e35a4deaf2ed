"""The positions that go through the output head: those with a label, where many have none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paretune.model.trainee import Head
from paretune.train.loss import IGNORED, PARTS, slice_tokens


def labelled_positions(
    labels_NS: torch.Tensor, heads: Sequence[Head], kind: str
) -> torch.Tensor | None:
    """Positions [H, C] with a label, in order; some without one follow where C is larger.

    Those have no loss and a gradient of zero. No position comes twice, so that what is computed for
    them can be written back without adding.

    On a CPU, C is what the head with the most labels needs. On a GPU shapes are few and fixed: C is
    one of ``PARTS`` shares of all positions, in whole slices of the loss.

    Args:
        labels_NS: of one head's rows after another's, on the CPU; IGNORED where there is none.
        heads: one for all rows, or one for each arm.
        kind: the type of the device that will compute.

    Returns:
        Positions among each head's own T = N * S / H; None where slices of one size do not fill T.
    """
    has_HT = (labels_NS != IGNORED).view(len(heads), -1)
    total = has_HT.shape[1]
    # At least one, so that a trained head always has a gradient
    count = max(1, int(has_HT.sum(dim=1).max()))
    if kind == "cuda":
        weight_VD = heads[0][0]
        assert weight_VD is not None
        trained = weight_VD.requires_grad
        size = slice_tokens(total, weight_VD.shape[0], kind, trained=trained, parts=PARTS)
        if total % size:
            return None
        slices = total // size
        shares = (-(-slices * part // PARTS) * size for part in range(1, PARTS + 1))
        count = next(share for share in shares if share >= count)
    filled = [torch.cat([own.nonzero(), (~own).nonzero()])[:count, 0] for own in has_HT]
    return torch.stack(filled)
