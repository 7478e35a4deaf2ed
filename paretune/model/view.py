"""Arms of one pass as scorers see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from paretune.model.flat import compute_type
from paretune.model.head import float32_head
from paretune.model.passes import Pass
from paretune.model.slots.model import SlotModel
from paretune.model.tree import TreeRow

if TYPE_CHECKING:
    from paretune.model.trainee import Trainee


class ArmView:
    """Arms of one pass as scorers see them (``evaluate.items.ArmModel``)."""

    def __init__(self, trainee: Trainee, group: Pass | None) -> None:
        self._trainee = trainee
        self._group = group
        self.count = group.count if group else 1
        self.device = trainee.device
        self.rows = trainee.rows

    @torch.no_grad()
    def logits(
        self,
        input_ids_BS: torch.Tensor,
        attention_mask_BS: torch.Tensor | None = None,
        position_ids_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [K, B, S, V], in float32, of the same rows for every arm."""
        settings: dict[str, Any] = {"use_cache": False}
        if attention_mask_BS is not None:
            settings["attention_mask"] = attention_mask_BS.repeat(self.count, 1)
        if position_ids_BS is not None:
            settings["position_ids"] = position_ids_BS.repeat(self.count, 1)
        with self._trainee.applied(self._group), float32_head(self._trainee.model):
            out = self._trainee.forward(input_ids_BS.repeat(self.count, 1), **settings).logits
        logits: torch.Tensor = out.view(self.count, input_ids_BS.shape[0], *out.shape[1:])
        return logits

    @torch.no_grad()
    def step(
        self,
        input_ids_KBS: torch.Tensor,
        *,
        past: Any = None,
        attention_mask_KBS: torch.Tensor | None = None,
        position_ids_KBS: torch.Tensor | None = None,
        use_cache: bool = True,
    ) -> tuple[torch.Tensor, Any]:
        """One decoding step with own rows for each arm: logits [K, B, S, V] and the cache."""
        settings: dict[str, Any] = {"use_cache": use_cache, "past_key_values": past}
        if attention_mask_KBS is not None:
            settings["attention_mask"] = attention_mask_KBS.flatten(0, 1)
        if position_ids_KBS is not None:
            settings["position_ids"] = position_ids_KBS.flatten(0, 1)
        with self._trainee.applied(self._group):
            out = self._trainee.forward(input_ids_KBS.flatten(0, 1), **settings)
        return out.logits.view(*input_ids_KBS.shape[:2], *out.logits.shape[1:]), out.past_key_values

    def slot_model(self) -> SlotModel | None:
        """These arms with the weights of this moment, for decoding many rows in slots.

        None where slots do not know their layers.
        """
        banks = self._group.banks if self._group else ()
        if not self._trainee.decodes_in_slots or any(bank.biases_elsewhere for bank in banks):
            return None
        short = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        return SlotModel(
            self._trainee.model,
            banks,
            self.count,
            self.device,
            compute_type(self.device),
            lambda _: self._trainee.forward(short, use_cache=False),
        )

    @torch.no_grad()
    def tree_refusal(self, longest: int) -> str | None:
        """Why these arms cannot score packed rows, or None (``longest`` sequence in tokens)."""
        packed = self._trainee.packed
        with self._trainee.applied(self._group):
            return packed.refusal(self.count, longest)

    @property
    def sparse_trees(self) -> bool:
        """Whether long rows packed as trees cost no more a token than short ones."""
        return self._trainee.packed.sparse

    @torch.no_grad()
    def tree(self, row: TreeRow, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of what a packed row asks for, and the likeliest tokens: [K, M] each.

        Args:
            tokens: about how many tokens the sequences of all rows have, of which this is one.
        """
        packed = self._trainee.packed
        with self._trainee.applied(self._group):
            return packed.scores(row, self.count, compiled=packed.pays(self.count * tokens))
