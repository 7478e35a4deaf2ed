"""The next token of each row: the likeliest, or one drawn with random numbers from a hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from paretune.evaluate.decode.request import GenerationRequest
from paretune.model.dropout import mix

# What stands for the token of a row whose logits are not numbers
BROKEN = -1


class Draws(NamedTuple):
    """How R rows choose their tokens; tensors [R] on the device of the logits.

    Attributes:
        temperature: float32; 0 takes the likeliest token.
        top_p: float32 in (0, 1].
        key: int32, from :meth:`GenerationRequest.key`.
        cuts: whether a top_p lies below 1.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    key: torch.Tensor
    cuts: bool

    @classmethod
    def of(
        cls, rows: Sequence[tuple[GenerationRequest, int]], device: torch.device
    ) -> Draws | None:
        """How a request's sample draws, for each row; None where none draws."""
        if all(request.temperature == 0 for request, _ in rows):
            return None
        return cls(
            torch.tensor([request.temperature for request, _ in rows], device=device),
            torch.tensor([request.top_p for request, _ in rows], device=device),
            torch.tensor([r.key(sample) for r, sample in rows], dtype=torch.int32, device=device),
            any(request.top_p < 1 for request, _ in rows),
        )

    def of_rows(self, arms: int, rows: Sequence[int]) -> Draws:
        """The same for some rows of every arm."""

        def chosen(part_R: torch.Tensor) -> torch.Tensor:
            return part_R.view(arms, -1)[:, rows].flatten()

        return Draws(chosen(self.temperature), chosen(self.top_p), chosen(self.key), self.cuts)


def next_tokens(
    logits_RV: torch.Tensor, draws: Draws | None, position_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [R], int64, and whether each row's largest logit is a number [R].

    A drawn token is the winner of an exponential race (equal to the Gumbel-max trick): token v of
    weight w_v = exp(logit_v / temperature) arrives at E_v / w_v, with E_v exponential, and the
    first one is v with probability w_v / sum(w). E_v hashes key, position and v, so a row's token
    depends on nothing beside it, and a small change of the logits seldom changes it.

    Args:
        draws: None where every row takes the likeliest token.
        position_R: int32, how many tokens the answer has so far.
    """
    logits_RV = logits_RV.float()
    best = logits_RV.max(-1)
    finite_R = best.values.isfinite()
    if draws is None:
        return best.indices, finite_R
    if logits_RV.is_cuda:
        from paretune.evaluate.decode.draw_kernel import drawn_tokens

        parts = (draws.temperature, draws.top_p, draws.key, position_R)
        return drawn_tokens(logits_RV, best.indices, best.values, *parts, cuts=draws.cuts), finite_R
    greedy_R = draws.temperature == 0
    warm_R1 = torch.where(greedy_R, 1.0, draws.temperature)[:, None]
    weight_RV = ((logits_RV - best.values[:, None]) / warm_R1).exp()
    if draws.cuts:
        weight_RV = nucleus(weight_RV, draws.top_p)
    race_RV = weight_RV / exponentials(draws.key, position_R, logits_RV.shape[1])
    drawn_R = race_RV.argmax(-1)
    return torch.where(greedy_R, best.indices, drawn_R), finite_R


def nucleus(weight_RV: torch.Tensor, top_p_R: torch.Tensor) -> torch.Tensor:
    """The weights [R, V] of the likeliest tokens that reach top_p of the total, 0 for the others.

    A token stays while those above it hold less than top_p (Holtzman et al., 2020).
    """
    ordered = weight_RV.sort(dim=-1, descending=True, stable=True)
    share_RV = ordered.values.double().cumsum(-1)
    above_RV = share_RV - ordered.values
    kept_RV = above_RV < top_p_R.double()[:, None] * share_RV[:, -1:]
    kept_RV |= (top_p_R == 1)[:, None]
    return torch.zeros_like(weight_RV).scatter(-1, ordered.indices, ordered.values * kept_RV)


def exponentials(key_R: torch.Tensor, position_R: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Exponential random numbers [R, V], float32: a hash of key, position and token."""
    place_R = mix(key_R ^ mix(position_R.to(torch.int32) * 31 + 1))
    token_V = mix(torch.arange(vocabulary, dtype=torch.int32, device=key_R.device) * 31 + 1)
    bits_RV = mix(token_V[None] ^ place_R[:, None])
    # 24 bits, moved to the middle of their interval so that the logarithm is finite
    uniform_RV = (((bits_RV >> 8) & 0xFFFFFF).float() + 0.5) * (1.0 / (1 << 24))
    return -uniform_RV.log()


def entropies(logits_RV: torch.Tensor) -> torch.Tensor:
    """Entropy [R] of each row's softmax, in nats, float32."""
    log_p_RV = torch.log_softmax(logits_RV.float(), -1)
    return -(log_p_RV.exp() * log_p_RV).nan_to_num(0.0).sum(-1)
