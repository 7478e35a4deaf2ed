"""Log-probabilities of the tokens that are asked for, without the logits of all others."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

# Bytes of one [positions, V] slice of logits: on a CPU it should stay in the cache (measured best
# between 2 and 8 MB), on a GPU each row of it should have a block of threads, and all be busy
SLICE_BYTES = {"cpu": 4 * 2**20}
DEFAULT_SLICE_BYTES = 2**30


def asked_of_hidden(
    hidden_KPD: torch.Tensor,
    head: torch.nn.Module,
    asked_M: NDArray[np.int64],
    targets_M: NDArray[np.int64],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target, and the likeliest token in its place: [K, M] each.

    Logits are computed slice by slice and dropped.

    Args:
        hidden_KPD: last hidden states of P places.
        head: the output layer.
        asked_M: ascending, the place whose next token is asked for.
        targets_M: the token asked for there.
    """
    weight: torch.Tensor = head.weight  # type: ignore[assignment]
    limit = SLICE_BYTES.get(hidden_KPD.device.type, DEFAULT_SLICE_BYTES)
    size = max(1, limit // (weight.element_size() * weight.shape[0]))
    edges = [*range(0, hidden_KPD.shape[1], size), hidden_KPD.shape[1]]
    # Which entries ask in which slice; they are in the order of their places
    cuts = np.searchsorted(asked_M, edges).tolist()
    asked, targets = (put(each, hidden_KPD.device) for each in (asked_M, targets_M))
    rows = []
    for hidden_PD in hidden_KPD.unbind(0):
        parts = []
        for number, (start, stop) in enumerate(pairwise(edges)):
            entries = slice(cuts[number], cuts[number + 1])
            logits_PV = head(hidden_PD[start:stop].to(weight.dtype))
            parts.append(_of_logits(logits_PV, asked[entries] - start, targets[entries]))
        rows.append((torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))
    return _stacked(rows)


def asked_of_logits(
    logits_KPV: torch.Tensor, asked_M: NDArray[np.int64], targets_M: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from logits that are there already."""
    asked, targets = (put(each, logits_KPV.device) for each in (asked_M, targets_M))
    return _stacked([_of_logits(logits_PV, asked, targets) for logits_PV in logits_KPV])


def put(values: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Values on the device, without waiting for what it is doing."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _of_logits(
    logits_PV: torch.Tensor, asked_M: torch.Tensor, targets_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    total_P, best_P = _totals(logits_PV)
    log_p_M = logits_PV[asked_M, targets_M].float() - total_P[asked_M]
    return log_p_M, best_P[asked_M]


def _totals(logits_PV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the summed exponentials, in float32, and the first of the largest logits."""
    if logits_PV.is_cuda:
        # Read once: torch's reductions read them three times, 7% of the time that scoring took
        from paretune.model.logits_kernel import totals

        return totals(logits_PV)
    return logits_PV.float().logsumexp(-1), logits_PV.argmax(-1)


def _stacked(
    rows: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
