"""What is trained and scored: arms with the model that carries them, one full arm, or the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeAlias

import torch

from paretune.model.adapter import Frozen
from paretune.model.attention import block_diagonal
from paretune.model.attention_dropout import check_it_drops, dropping_attention
from paretune.model.causal import check_causal
from paretune.model.dropout import key
from paretune.model.flat import Flat, compute_type
from paretune.model.layers import linear_layers
from paretune.model.load import load_model
from paretune.model.outputs import Output
from paretune.model.packed import PackedModel
from paretune.model.passes import Pass
from paretune.model.pissa import Anchor
from paretune.model.product import Term
from paretune.model.quantised import quantise
from paretune.model.view import ArmView
from paretune.model.weight_gradient import add_gradients_in_place
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

# The output head: its weight [V, D] and its bias [V], where there are such
Head: TypeAlias = tuple[torch.Tensor | None, torch.Tensor | None]
# Tokens in one forward pass on a CPU: beyond this, activations leave the cache and it gets slower
CPU_TOKENS = 1024
# Tokens in one scoring pass on a GPU; what is packed as trees has a size of its own
_GPU_TOKENS = 16_384


class Trainee:
    """Arms that train together, with the model that carries them.

    On a GPU the frozen base and everything computed with it are bf16, as its users run it; adapters
    have float32 masters, gradients and optimizer states. A full arm follows autocast: products in
    bf16, everything else, the residual stream included, in float32. On a CPU all is float32.

    Attributes:
        arms: their configurations, in cohort order; every per-arm vector follows it.
        flats: trained values; each knows the cohort positions of its rows.
        passes: a partition of the arms into groups that share a forward pass.
        rows: rows of each arm in one forward pass; a batch is cut into pieces of this size.
        adapted: the frozen base's modules that carry arms; None under full finetuning.
        checkpoint: whether training keeps only what enters each block (activation checkpointing).
    """

    def __init__(
        self,
        model: Any,
        arms: Sequence[ArmConfig],
        flats: Sequence[Flat],
        passes: Sequence[Pass],
        adapted: Mapping[str, Frozen] | None,
        device: torch.device,
        base: Base,
    ) -> None:
        self.model = model
        self.base = base
        self.arms = list(arms)
        self.flats = list(flats)
        self.passes = list(passes)
        self.device = device
        self.rows = 1
        self.checkpoint = False
        self.adapted = adapted

    @cached_property
    def packed(self) -> PackedModel:
        """The model over rows that are packed as trees."""
        head = self.model.get_output_embeddings() if self.head_is_linear else None
        return PackedModel(self.model, self.forward, head, self.device)

    @property
    def is_full(self) -> bool:
        """Whether this is one full-finetuning arm (no adapters)."""
        return self.adapted is None

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 products for a full arm on a GPU; a frozen base is bf16 or float32 throughout."""
        if self.device.type == "cuda" and self.is_full and self.arms:
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def reset(self) -> None:
        """Give every arm its initial weights again."""
        for group in self.passes:
            for bank in group.banks:
                bank.reset()
        if self.is_full:
            original = dict(load_model(self.base, torch.device("cpu")).named_parameters())
            for name, own in self.flats[0].tensors(0).items():
                own.copy_(original[name])
            self.flats[0].refresh()

    @property
    def decodes_in_slots(self) -> bool:
        """Whether the copy that decodes many rows knows this model's layers."""
        return self.base.quantise is None

    def flats_of(self, group: Pass) -> list[Flat]:
        """The flats whose arms are in ``group``."""
        return [flat for flat in self.flats if group.start <= flat.arms[0] < group.stop]

    @contextmanager
    def applied(
        self, group: Pass | None, *, step: int | None = None, first_vector: int = 0
    ) -> Iterator[None]:
        """Apply the adapters of ``group`` (None: the base alone); with ``step``, dropout is on.

        Args:
            first_vector: where the piece that goes through begins in each arm's batch, in tokens.
        """
        if self.adapted is None:
            with self._attention_dropout(step, first_vector):
                yield
            return
        terms: dict[str, tuple[Term, ...]] = {}
        outputs: dict[str, Output] = {}
        if group:
            terms, outputs = group.terms[step is not None], group.outputs[step is not None]
            self.draw(group, step, first_vector)
        for name, layer in self.adapted.items():
            layer.terms, layer.output = terms.get(name, ()), outputs.get(name)
            layer.count = group.count if group else 1
        try:
            yield
        finally:
            for layer in self.adapted.values():
                layer.terms, layer.output, layer.count = (), None, 1

    def draw(self, group: Pass, step: int | None, first_vector: int) -> None:
        """Set what depends on the weights as a whole, and dropout masks of one piece of a step."""
        for bank in group.banks:
            bank.measure()
            if step is not None:
                bank.draw(step, first_vector)

    def anchor(self, position: int) -> tuple[Anchor, int] | None:
        """What a PiSSA arm subtracts, and its row there; None for other arms."""
        for bank in (bank for group in self.passes for bank in group.banks):
            if position in bank.flat.arms and bank.anchor is not None:
                return bank.anchor, bank.flat.arms.index(position)
        return None

    def _attention_dropout(
        self, step: int | None, first_vector: int
    ) -> AbstractContextManager[None]:
        arm = self.arms[0] if self.arms else None
        if step is None or arm is None or not arm.attention_dropout:
            return nullcontext()
        seed = key(arm.seed, step, first_vector) & 0xFFFFFFFF
        return dropping_attention(self.model, self.device, seed)

    def forward(
        self,
        input_ids_NS: torch.Tensor,
        *,
        position_ids_NS: torch.Tensor | None = None,
        segments_NS: torch.Tensor | None = None,
        bounds: torch.Tensor | None = None,
        part: str = "logits",
        **settings: Any,
    ) -> Any:
        """The model's output for arm-major rows [K * B, S], under autocast.

        Args:
            segments_NS: several texts in a row, kept apart (``attention.block_diagonal``).
            bounds: the same, where the model's attention is ``attention.attend``.
            part: ``logits`` for the whole model, ``hidden`` for all of it but the output head.
        """
        if segments_NS is not None:
            settings["attention_mask"] = block_diagonal(segments_NS, self.model)
        if bounds is not None:
            settings["cu_seq_lens_q"] = bounds
        if position_ids_NS is not None:
            settings["position_ids"] = position_ids_NS
        model = self.model if part == "logits" else self.model.base_model
        with self.autocast():
            return model(input_ids=input_ids_NS, **settings)

    @cached_property
    def head_is_linear(self) -> bool:
        """Whether logits are the output head's product with the last hidden state, and no more.

        Found by trying: some families scale or cap their logits after the head. Others do not say
        which part of them comes before it.
        """
        head = self.model.get_output_embeddings()
        apart = self.model.base_model is not self.model
        return apart and type(head) is torch.nn.Linear and self._head_is_all(head)

    @contextmanager
    def trying(self) -> Iterator[int]:
        """What a few tokens can be tried on: the base. Gives the arms folded into the rows, 1."""
        with self.applied(None):
            yield 1

    def _head_is_all(self, head: Callable[[Any], torch.Tensor]) -> bool:
        with torch.no_grad(), self.trying() as count, self.autocast():
            ids = torch.arange(4, device=self.device).expand(count, 4)
            logits = self.forward(ids, use_cache=False).logits
            hidden = self.forward(ids, part="hidden", use_cache=False)[0]
            return torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-5)

    def heads(self, group: Pass) -> list[Head]:
        """The output head as weight and bias: one for all arms of a pass, or one for each."""
        head = self.model.get_output_embeddings()
        return [(head.weight, head.bias)]

    def view(self, group: Pass | None) -> ArmView:
        """The arms of ``group``, or the base under the adapters (None), for scoring."""
        if group is None and self.adapted is None and self.arms:
            raise ValueError("a full arm has no base beneath it")
        return ArmView(self, group)


def scoring_rows(device: torch.device, length: int) -> int:
    """Rows of ``length`` tokens that a model without anything to train scores at a time."""
    return max(1, (CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS) // length)


def frozen(base: Base, device: torch.device) -> Trainee:
    """The base as it is, with nothing to train.

    Raises:
        UserError: it cannot be loaded, or is no causal LM.
    """
    if base.quantise is None:
        model = load_model(base, device, dtype=compute_type(device))
    else:
        model = load_model(base, torch.device("cpu"), dtype=compute_type(device))
        quantise(model, base.quantise, device)
        model.to(device)
    check_causal(model, device, base.name)
    return Trainee(model, [], [], [], None, device, base)


def full_arm(base: Base, arm: ArmConfig, device: torch.device) -> Trainee:
    """Full finetuning of every weight of the base, in float32 masters.

    Raises:
        UserError: the arm has attention dropout, and the base cannot have it.
    """
    model = load_model(base, torch.device("cpu"), attention_dropout=arm.attention_dropout)
    named = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    # Autocast computes products of these in bf16 and nothing else; copies take its casts' place
    matrices = [f"{name}.weight" for name in linear_layers(model)]
    copied = matrices if compute_type(device) == torch.bfloat16 else ()
    flat = Flat([0], shapes, arm_axis=False, device=device, copied=copied, train_copies=True)
    for name, own in flat.tensors(0).items():
        own.copy_(named[name].detach())
    flat.refresh()
    for name, parameter in named.items():
        parameter.data = flat.parameters[name].data
        parameter.requires_grad = True
        parameter.grad = flat.parameters[name].grad
    model.to(device)  # buffers
    if device.type == "cuda":
        add_gradients_in_place(model)
    trainee = Trainee(model, [arm], [flat], [Pass(0, 1, ())], None, device, base)
    if arm.attention_dropout:
        check_it_drops(
            lambda ids: trainee.forward(ids, use_cache=False).logits, model, device, base.name
        )
    return trainee
