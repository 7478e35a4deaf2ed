"""How far arms have drifted from the base on given text: Kullback-Leibler divergence, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.evaluate.batches import ROW_TOKENS, batches, position_slices, right_padded
from paretune.evaluate.items import ArmModel

# Host memory that a base's distributions may take
MOST_BYTES = 8 * 2**30


class Drift(NamedTuple):
    """Sums over the scored tokens of each row, in nats, [K, N] each.

    Attributes:
        forward: KL(base || arm) = sum_v p_base(v) (log p_base(v) - log p_arm(v)).
        reverse: KL(arm || base); NaN where it was not wanted.
        nats: negative log-likelihood of the tokens themselves under the arm.
    """

    forward: NDArray[np.float64]
    reverse: NDArray[np.float64]
    nats: NDArray[np.float64]


class Reference:
    """The base's distributions over the whole vocabulary at the scored tokens of some rows.

    Args:
        rows: token ids of each.
        starts: the first token of each that is scored; at least one stands before it.
        reverse: whether the reverse divergence is wanted too; it costs half as much again.
    """

    def __init__(
        self,
        rows: Sequence[NDArray[np.int64]],
        starts: Sequence[int],
        *,
        row_tokens: int = ROW_TOKENS,
        reverse: bool = False,
    ) -> None:
        self.rows = list(rows)
        self._reverse = reverse
        self.starts = list(starts)
        self._row_tokens = row_tokens
        self._base: list[torch.Tensor] = []  # [scored tokens, V] of each row, in host memory

    @property
    def scored(self) -> NDArray[np.float64]:
        """Scored tokens of each row, [N]."""
        return np.array(
            [len(row) - start for row, start in zip(self.rows, self.starts, strict=True)],
            dtype=np.float64,
        )

    @torch.no_grad()
    def attach(self, base: ArmModel) -> None:
        """Keep the base's log-probabilities in host memory.

        They are computed in the batches that arms are scored in, so that on a CPU in float32 the
        base's divergence from itself is exactly 0.
        """
        if base.count != 1:
            raise ValueError(f"the reference is the base alone, not {base.count} arms")
        found: dict[int, torch.Tensor] = {}
        for batch in self._batches(base):
            logits_BSV = self._logits(base, batch)[0]
            V = logits_BSV.shape[-1]
            for row, index in enumerate(batch):
                first, stop = self._span(index)
                found[index] = torch.empty(stop - first, V)
                for part in position_slices(stop - first, V, base.device):
                    log_p = log_probabilities(logits_BSV[row, first:stop][part])
                    found[index][part] = log_p.cpu()
        self._base = [found[index] for index in range(len(self.rows))]

    @torch.no_grad()
    def score(self, arms: ArmModel) -> Drift:
        """The drift of every arm.

        Raises:
            ValueError: no base was attached.
        """
        if not self._base and self.rows:
            raise ValueError("attach the base before arms are scored")
        shape = (arms.count, len(self.rows))
        drift = Drift(np.zeros(shape), np.zeros(shape), np.zeros(shape))
        for batch in self._batches(arms):
            logits_KBSV = self._logits(arms, batch)
            for row, index in enumerate(batch):
                for of_all, own in zip(drift, self._row(logits_KBSV[:, row], index), strict=True):
                    of_all[:, index] = own.double().sum(-1).cpu().numpy()
        return drift

    def _row(
        self, logits_KSV: torch.Tensor, index: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Divergences and negative log-likelihood of a row's scored tokens, [K, S] each."""
        first, stop = self._span(index)
        K, V, device = len(logits_KSV), logits_KSV.shape[-1], logits_KSV.device
        targets_S = torch.from_numpy(self.rows[index][first + 1 : stop + 1]).to(device)
        forward_KS, reverse_KS, nats_KS = torch.full((3, K, stop - first), nan, device=device)
        for part in position_slices(stop - first, V, device):
            base_sV = self._base[index][part].to(device)
            p_base_sV = base_sV.exp()
            for arm in range(K):
                log_p_sV = log_probabilities(logits_KSV[arm, first:stop][part])
                nats_KS[arm, part] = -log_p_sV.gather(1, targets_S[part, None])[:, 0]
                apart_sV = base_sV - log_p_sV
                forward_KS[arm, part] = _expected(p_base_sV, apart_sV)
                if self._reverse:
                    reverse_KS[arm, part] = -_expected(log_p_sV.exp_(), apart_sV)
        return forward_KS, reverse_KS, nats_KS

    def _span(self, index: int) -> tuple[int, int]:
        """Positions whose logits predict the scored tokens."""
        return self.starts[index] - 1, len(self.rows[index]) - 1

    def _batches(self, arms: ArmModel) -> list[list[int]]:
        return list(batches([len(row) - 1 for row in self.rows], arms, self._row_tokens))

    def _logits(self, arms: ArmModel, batch: Sequence[int]) -> torch.Tensor:
        tokens = right_padded([self.rows[index] for index in batch])
        return arms.logits(tokens[:, :-1].to(arms.device))


def log_probabilities(logits_PV: torch.Tensor) -> torch.Tensor:
    """Log-softmax in float32."""
    return torch.log_softmax(logits_PV.float(), -1)


def _expected(p_sV: torch.Tensor, value_sV: torch.Tensor) -> torch.Tensor:
    """sum_v p(v) value(v); what is never written adds nothing, whatever its value is."""
    return (p_sV * value_sV).masked_fill_(p_sV == 0, 0.0).sum(-1)


def that_fit(lengths: Sequence[int], vocabulary: int, most_bytes: int = MOST_BYTES) -> list[int]:
    """Rows, evenly spread, whose distributions fit into host memory; at least one."""
    room = max(1, most_bytes // (4 * vocabulary))
    step = max(1, -(-sum(lengths) // room))
    return list(range(0, len(lengths), step))
