"""Totals and best tokens of logits, against torch in float64."""

from __future__ import annotations

import pytest
import torch


def totals(logits_PV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from paretune.model import logits_kernel

    total_P, best_P = logits_kernel.totals(logits_PV)
    return total_P.cpu(), best_P.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [7, 4096, 10_007])
def test_equal_torchs(vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(vocabulary)
    logits = (4 * torch.randn(5, vocabulary)).to(device, dtype)
    logits[1, : min(5000, vocabulary - 1)] = -torch.inf  # as of tokens that are never allowed
    total, best = totals(logits)
    torch.testing.assert_close(total.double(), logits.double().logsumexp(-1).cpu())
    assert best.tolist() == logits.argmax(-1).tolist()


def test_of_equal_logits_the_first_is_best(device: torch.device) -> None:
    logits = torch.zeros(2, 9000, device=device)
    logits[1, 4500:] = 3
    assert totals(logits)[1].tolist() == [0, 4500]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 5000, 8999])
def test_what_is_no_number_stays_so(bad: float, place: int, device: torch.device) -> None:
    logits = torch.randn(3, 9000, device=device)
    logits[1, place] = bad
    assert totals(logits)[0].isfinite().tolist() == [True, False, True]


def test_logits_that_lie_otherwise_in_memory(device: torch.device) -> None:
    logits = torch.randn(50, 6, device=device)
    across, rows = totals(logits.T), totals(logits[::2])
    torch.testing.assert_close(across[0], logits.T.logsumexp(-1).cpu())
    torch.testing.assert_close(rows[0], logits[::2].logsumexp(-1).cpu())
    assert totals(logits[:0])[0].shape == (0,)
