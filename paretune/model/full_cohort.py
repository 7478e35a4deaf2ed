"""Several full-finetuning arms in one cohort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from paretune.model.arm_axis import ArmModule, FullBank, give_arm_axis
from paretune.model.flat import compute_type
from paretune.model.layers import linear_layers
from paretune.model.load import load_model
from paretune.model.packed import PackedModel
from paretune.model.passes import Pass
from paretune.model.trainee import Head, Trainee
from paretune.study.arms import ArmConfig
from paretune.study.config import Base


class FullCohort(Trainee):
    """Full arms that train together; on a GPU each pass goes through weights with an arm axis."""

    def __init__(
        self,
        model: Any,
        banks: Sequence[FullBank],
        modules: Sequence[ArmModule],
        device: torch.device,
        base: Base,
    ) -> None:
        arms = [arm for bank in banks for arm in bank.arms]
        flats = [bank.flat for bank in banks]
        passes = [Pass(flat.arms[0], flat.arms[-1] + 1, ()) for flat in flats]
        super().__init__(model, arms, flats, passes, None, device, base)
        self._banks = {group.start: bank for group, bank in zip(passes, banks, strict=True)}
        self._modules = list(modules)
        model.base_model.register_forward_pre_hook(self._note_rows, with_kwargs=True)

    def reset(self) -> None:
        """Give every arm the base's weights again."""
        for bank in self._banks.values():
            bank.reset()

    @contextmanager
    def applied(
        self, group: Pass | None, *, step: int | None = None, first_vector: int = 0
    ) -> Iterator[None]:
        """Use the weights of ``group``'s arms."""
        for module in self._modules:
            module.use(self._banks[group.start] if group else None)
        try:
            yield
        finally:
            for module in self._modules:
                module.use(None)

    def _note_rows(self, _: torch.nn.Module, args: Any, settings: dict[str, Any]) -> None:
        ids = args[0] if args else settings["input_ids"]
        for module in self._modules:
            module.rows = ids.shape[0]

    @cached_property
    def head_is_linear(self) -> bool:
        """Whether logits are the output head's product with the last hidden state, and no more."""
        head = self.model.get_output_embeddings()
        if not (isinstance(head, ArmModule) and type(head.module) is torch.nn.Linear):
            return False
        return self._head_is_all(head)

    @contextmanager
    def trying(self) -> Iterator[int]:
        """A few tokens are tried on the arms of the first pass, since there is no base."""
        with self.applied(self.passes[0]):
            yield self.passes[0].count

    def heads(self, group: Pass) -> list[Head]:
        """The output head of each arm."""
        head: ArmModule = self.model.get_output_embeddings()
        own = head.of(self._banks[group.start])
        biases = own["bias"].unbind() if "bias" in own else [None] * group.count
        return list(zip(own["weight"].unbind(), biases, strict=True))

    @cached_property
    def packed(self) -> PackedModel:
        """The model over rows that are packed as trees; each arm has a head of its own."""
        return PackedModel(self.model, self.forward, None, self.device)

    @property
    def decodes_in_slots(self) -> bool:
        """Slots decode over one base."""
        return False


def full_cohort(
    base: Base,
    arms: Sequence[ArmConfig],
    device: torch.device,
    *,
    arms_per_pass: int | None = None,
) -> FullCohort:
    """Full finetuning of several arms, float32 masters with an arm axis.

    Args:
        arms_per_pass: arms in one forward pass; all by default. On a CPU one: an arm's arithmetic
            is then that of an arm alone, to the bit.

    Raises:
        ValueError: the base has weights that cannot carry several arms, or an arm has attention
            dropout.
    """
    if any(arm.attention_dropout for arm in arms):
        raise ValueError("attention dropout is drawn for one arm at a time")
    model = load_model(base, torch.device("cpu"))
    # As for one full arm: autocast computes products of these in bf16, and nothing else
    matrices = [f"{name}.weight" for name in linear_layers(model)]
    copied = matrices if compute_type(device) == torch.bfloat16 else []
    weights, modules = give_arm_axis(model, device)
    model.to(device)
    # Arms that share an optimizer stand side by side, so that they share a bank
    ordered = sorted(arms, key=lambda arm: (arm.optimizer, arm.id))
    size = arms_per_pass or (1 if device.type == "cpu" else len(ordered))
    banks: list[FullBank] = []
    for optimizer in dict.fromkeys(arm.optimizer for arm in ordered):
        positions = [i for i, arm in enumerate(ordered) if arm.optimizer == optimizer]
        for first in range(0, len(positions), size):
            own = positions[first : first + size]
            banks.append(FullBank([ordered[i] for i in own], own, weights, device, copied))
    return FullCohort(model, banks, modules, device, base)
