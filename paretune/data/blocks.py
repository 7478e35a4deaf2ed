"""Training data as rows of tokens on disk, memory-mapped, and the batches made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

TOKENS = "tokens.npy"
SEGMENTS = "segments.npy"
LOSS_MASK = "loss_mask.npy"


@dataclass(frozen=True)
class Batch:
    """Rows of one optimizer step, or a part of them; B rows of S tokens.

    Attributes:
        input_ids: [B, S] int64.
        loss_mask: [B, S] bool; True where a token counts in the loss, predicted from those before
            it. `cpt`: all but position 0. `ift`: a response's tokens and the end-of-text after it.
        position_ids: [B, S] int64, `ift` only: starts again at 0 for each pair.
        segments: [B, S] int64, `ift` only: 1, 2, ... the pair a token belongs to; 0 is padding.
    """

    input_ids: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor | None = None
    segments: torch.Tensor | None = None


class Blocks:
    """Memory-mapped rows of ``block_length`` tokens in a folder that `prepare` has written."""

    def __init__(self, folder: Path, regime: str) -> None:
        self.regime = regime
        self._tokens: Any = np.load(folder / TOKENS, mmap_mode="r")
        pairs = regime == "ift"
        self._segments: Any = np.load(folder / SEGMENTS, mmap_mode="r") if pairs else None
        self._loss_mask: Any = np.load(folder / LOSS_MASK, mmap_mode="r") if pairs else None
        self.count: int = int(self._tokens.shape[0])
        self.block_length: int = int(self._tokens.shape[1])

    def most_segments(self) -> int:
        """Segments of the fullest row, padding counted as one; 0 where rows are single texts."""
        if self._segments is None:
            return 0
        return max(int(self._segments[i : i + 4096].max()) for i in range(0, self.count, 4096)) + 1

    def largest_token(self, rows: int = 4096) -> int:
        """The largest token id among the first rows."""
        return int(self._tokens[:rows].max())

    def batch(self, rows: np.ndarray) -> Batch:
        """The blocks with these indices, in this order, as tensors on the CPU.

        Raises:
            IndexError: an index beyond the blocks.
        """
        import torch

        tokens = torch.from_numpy(self._tokens[rows].astype(np.int64))
        if self._segments is None:
            loss_mask = torch.ones_like(tokens, dtype=torch.bool)
            loss_mask[:, 0] = False
            return Batch(tokens, loss_mask)
        segments = self._segments[rows].astype(np.int64)
        return Batch(
            input_ids=tokens,
            loss_mask=torch.from_numpy(self._loss_mask[rows].astype(bool)),
            position_ids=torch.from_numpy(positions(segments)),
            segments=torch.from_numpy(segments),
        )


def positions(segments: np.ndarray) -> np.ndarray:
    """Positions [B, S] that start at 0 wherever a new segment starts."""
    index = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    starts = np.ones(segments.shape, dtype=bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return np.asarray(index - np.maximum.accumulate(np.where(starts, index, 0), axis=1))
