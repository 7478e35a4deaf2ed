"""Log-likelihoods of continuations for K arms, from rows packed as trees or plain ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.evaluate.batches import ROW_TOKENS, batches, position_slices, right_padded
from paretune.evaluate.items import ArmModel
from paretune.evaluate.tasks.pack import Packed, Scored, pack
from paretune.evaluate.tasks.portions import Portion

# Tokens of a packed row for each arm. Nothing is kept for a backward pass, so on a GPU it is much
# longer than a training row; on a CPU a mask over a longer one would cost more than it saves
CPU_CAPACITY = 1024
GPU_CAPACITY = 16_384
LEAST_GPU_CAPACITY = 2048


class LogLikelihoods:
    """Requests to score, tokenized and packed once for all arms.

    Args:
        portions: token sequences, each with how many of its last tokens are scored. The first
            arms are at work on one portion while the next is tokenized.
    """

    def __init__(self, portions: Sequence[Portion]) -> None:
        self._portions = portions
        self._packed: dict[int, list[Packed]] = {}
        self._computed: dict[int, int] = {}  # by capacity, as the rows

    def refusal(self, arms: ArmModel) -> str | None:
        """Why these arms are scored with plain rows, or None where trees serve."""
        reason = arms.tree_refusal(self._longest)
        if reason is None:
            return None
        self._tokenized()  # it may be a bound only that is too long
        return arms.tree_refusal(self._longest)

    @torch.no_grad()
    def score(self, arms: ArmModel) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Log-likelihood in nats of each request's last tokens, and whether greedy decoding gives
        exactly these: [K, N] each, by the requests' numbers. NaN where an arm's logits are not
        numbers.
        """
        refused = self.refusal(arms) is not None
        total_KN, greedy_KN = self._plain(arms) if refused else self._by_trees(arms)
        order = np.argsort([number for portion in self._portions for number in portion.numbers])
        return total_KN[:, order], greedy_KN[:, order]

    def _by_trees(self, arms: ArmModel) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The same from packed rows, portion by portion."""
        bound = self._longest
        tokens = sum(portion.size for portion in self._portions)
        found = [(packed, *arms.tree(packed.row, tokens)) for packed in self._rows(arms)]
        if self._longest > bound and self.refusal(arms) is not None:
            return self._plain(arms)  # a tokenizer gave more tokens than the bound
        size = sum(len(portion.tokenized()) for portion in self._portions)
        if not found:
            return np.zeros((arms.count, size)), np.ones((arms.count, size), dtype=np.bool_)
        # Read back at the end and at once, so that a GPU never waits for the host
        log_p_KM = torch.cat([log_p for _, log_p, _ in found], 1).double().cpu().numpy()
        best_KM = torch.cat([best for _, _, best in found], 1).cpu().numpy()
        request_M = np.concatenate([packed.request for packed, _, _ in found])
        missed_KM = best_KM != np.concatenate([packed.row.targets for packed, _, _ in found])
        total_KN = np.zeros((arms.count, size))
        greedy_KN = np.zeros((arms.count, size), dtype=np.bool_)
        for arm, (nats_M, missed_M) in enumerate(zip(log_p_KM, missed_KM, strict=True)):
            total_KN[arm] = np.bincount(request_M, weights=nats_M, minlength=size)
            greedy_KN[arm] = np.bincount(request_M[missed_M], minlength=size) == 0
        return total_KN, greedy_KN & np.isfinite(total_KN)

    def fill(self, arms: ArmModel) -> tuple[int, int, int]:
        """Tokens computed, places in the rows that hold them, and tokens without any sharing."""
        rows = list(self._rows(arms))
        places = sum(len(packed.row.tokens) for packed in rows)
        alone = sum(len(request.tokens) - 1 for request in self._tokenized())
        return self._computed[self._capacity(arms)], places, alone

    def _rows(self, arms: ArmModel) -> Iterator[Packed]:
        """The rows; the first time they are packed while the model works on those before."""
        capacity = self._capacity(arms)
        if capacity not in self._packed:
            kept: list[Packed] = []
            computed = 0
            for packed in pack((each.tokenized() for each in self._portions), capacity):
                computed += len(packed.row.tokens)
                if arms.device.type == "cuda":
                    # One shape, for which the model is compiled once
                    packed = replace(packed, row=packed.row.padded(capacity))
                kept.append(packed)
                yield packed
            self._packed[capacity], self._computed[capacity] = kept, computed
            return
        yield from self._packed[capacity]

    @property
    def _longest(self) -> int:
        """Tokens of the longest request, or a bound on it while some are not tokenized."""
        return max((portion.longest for portion in self._portions), default=0)

    def _tokenized(self) -> list[Scored]:
        """All requests, portion by portion."""
        return [request for portion in self._portions for request in portion.tokenized()]

    def _capacity(self, arms: ArmModel) -> int:
        if arms.device.type == "cpu":
            return CPU_CAPACITY
        most = GPU_CAPACITY // arms.count if arms.sparse_trees else LEAST_GPU_CAPACITY
        size = max(LEAST_GPU_CAPACITY, most)
        if self._longest > size:
            self._tokenized()  # what a bound only would make longer is compiled for nothing
        return -(-max(size, self._longest) // 128) * 128

    def _plain(self, arms: ArmModel) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The same from one row for each request, padded on the right, portion by portion."""
        requests = self._tokenized()
        total = np.zeros((arms.count, len(requests)))
        greedy = np.zeros((arms.count, len(requests)), dtype=bool)
        lengths = [len(request.tokens) - 1 for request in requests]
        for batch in batches(lengths, arms, ROW_TOKENS):
            members = [requests[index] for index in batch]
            inputs = right_padded([member.tokens[:-1] for member in members])
            logits_KBSV = arms.logits(inputs.to(arms.device))
            for row, (index, member) in enumerate(zip(batch, members, strict=True)):
                end = len(member.tokens) - 1
                targets_C = torch.from_numpy(member.tokens[-member.count :]).to(arms.device)
                logits_KCV = logits_KBSV[:, row, end - member.count : end]
                total[:, index] = _summed(logits_KCV, targets_C)
                hits_K = (logits_KCV.argmax(-1) == targets_C).all(-1)
                greedy[:, index] = hits_K.cpu().numpy()
        return total, greedy & np.isfinite(total)


def _summed(logits_KCV: torch.Tensor, targets_C: torch.Tensor) -> NDArray[np.float64]:
    K, C, V = logits_KCV.shape
    nats_KC = torch.empty(K, C, dtype=torch.float64)
    for arm in range(K):
        for part in position_slices(C, V, logits_KCV.device):
            nats_KC[arm, part] = (
                -torch.nn.functional.cross_entropy(
                    logits_KCV[arm, part].float(), targets_C[part], reduction="none"
                )
                .double()
                .cpu()
            )
    summed: NDArray[np.float64] = nats_KC.sum(-1).numpy()
    return summed
