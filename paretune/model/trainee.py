"""What is trained and scored: a cohort of LoRA arms over one frozen base, or one full arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeAlias

import torch

from paretune.errors import UserError
from paretune.model.adapter import (
    AdaptedLinear,
    AdaptedQuantised,
    Bank,
    Frozen,
    matrix_of,
)
from paretune.model.attention import block_diagonal
from paretune.model.biases import AddedBias, adds_its_bias, trained_biases
from paretune.model.dropout import key
from paretune.model.flat import Flat, compute_type
from paretune.model.layers import Layer, linear_layers, select, weight_of
from paretune.model.load import load_model
from paretune.model.outputs import Output
from paretune.model.packed import PackedModel
from paretune.model.passes import Pass
from paretune.model.pissa import Anchor, LeadingVectors
from paretune.model.product import Term
from paretune.model.quantised import QuantisedLinear, quantise
from paretune.model.view import ArmView
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

    @contextmanager
    def _attention_dropout(self, step: int | None, first_vector: int) -> Iterator[None]:
        arm = self.arms[0] if self.arms else None
        if step is None or arm is None or not arm.attention_dropout:
            yield
            return
        # Only attention modules enter training mode: other dropouts of a base stay off for all arms
        modules = [m for m in self.model.modules() if hasattr(m, "attention_dropout")]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(key(arm.seed, step, first_vector) & 0xFFFFFFFF)
            for module in modules:
                module.training = True
            try:
                yield
            finally:
                for module in modules:
                    module.training = False

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
    """The base as it is, with nothing to train."""
    if base.quantise is None:
        model = load_model(base, device, dtype=compute_type(device))
    else:
        model = load_model(base, torch.device("cpu"), dtype=compute_type(device))
        quantise(model, base.quantise, device)
        model.to(device)
    return Trainee(model, [], [], [], None, device, base)


def full_arm(base: Base, arm: ArmConfig, device: torch.device) -> Trainee:
    """Full finetuning of every weight of the base, in float32 masters."""
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
    return Trainee(model, [arm], [flat], [Pass(0, 1, ())], None, device, base)


def lora_cohort(
    base: Base,
    arms: Sequence[ArmConfig],
    device: torch.device,
    *,
    arms_per_pass: int | None = None,
    model: torch.nn.Module | None = None,
) -> Trainee:
    """LoRA arms over one frozen base; arms may differ in every setting.

    Args:
        model: the base, which stays on the device it is on; read anew by default.
        arms_per_pass: arms in one forward pass; all by default. On a CPU one: larger products gain
            nothing there, and an arm's arithmetic is then the same to the bit in any cohort.

    Raises:
        UserError: a target that the base does not have.
    """
    dtype = compute_type(device)
    given = model
    if model is None:
        model = load_model(base, torch.device("cpu"), dtype=dtype)
    layers = linear_layers(model)
    targets = {arm.id: tuple(select(layers, arm.targets or "all")) for arm in arms}
    biases = {arm.id: trained_biases(model, arm.bias, targets[arm.id]) for arm in arms}
    # Arms of one shape stand side by side, so that they share a bank
    ordered = sorted(arms, key=lambda a: (*_shape(a, targets), a.id))
    size = arms_per_pass or (1 if device.type == "cpu" else len(ordered))
    names = set().union(*targets.values(), *biases.values())
    frozen = _replace(model, layers, names, base, device)
    if given is None:
        model.to(device)
    leading = None
    if any(arm.init == "pissa" for arm in arms):
        ranks = [arm.rank or 1 for arm in arms if arm.init == "pissa"]
        matrices = {name: matrix_of(frozen, name) for name in set().union(*targets.values())}
        leading = LeadingVectors(matrices, max(ranks))
    passes: list[Pass] = []
    for start in range(0, len(ordered), size):
        stop = min(start + size, len(ordered))
        banks: list[Bank] = []
        for first, last in _runs([_shape(ordered[i], targets) for i in range(start, stop)]):
            positions = list(range(start + first, start + last))
            own = [ordered[i] for i in positions]
            named = {name: layers[name] for name in targets[own[0].id]}
            banks.append(
                Bank(
                    own,
                    positions,
                    named,
                    device,
                    frozen=frozen,
                    biases=biases[own[0].id],
                    leading=leading if own[0].init == "pissa" else None,
                    first_arm=first,
                    dtype=dtype,
                )
            )
        passes.append(Pass(start, stop, tuple(banks)))
    flats = [bank.flat for group in passes for bank in group.banks]
    return Trainee(model, ordered, flats, passes, frozen, device, base)


def _shape(arm: ArmConfig, targets: dict[str, tuple[str, ...]]) -> tuple[Any, ...]:
    variant = (bool(arm.dora), arm.init or "", arm.bias or "", bool(arm.loraplus_lr_ratio))
    return (arm.rank or 0, targets[arm.id], arm.optimizer, *variant)


def _runs(keys: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Stretches [first, last) of equal neighbouring keys."""
    first = 0
    for i in range(1, len(keys) + 1):
        if i == len(keys) or keys[i] != keys[first]:
            yield first, i
            first = i


def _replace(
    model: torch.nn.Module,
    layers: Mapping[str, Layer],
    names: set[str],
    base: Base,
    device: torch.device,
) -> dict[str, Frozen]:
    """Put a module that carries arms in the place of each one named; returns these.

    Raises:
        UserError: a bias that cannot be trained, or a quantised base without bitsandbytes.
    """
    # A layer stored transposed computes a little differently in its own class, and which arms
    # adapt it must not matter to the others
    names = names | {name for name, layer in layers.items() if layer.transposed}
    if base.quantise is not None:
        quantise(model, base.quantise, device)
    frozen: dict[str, Frozen] = {}
    for name in sorted(names):
        module: Any = model.get_submodule(name)
        if isinstance(module, QuantisedLinear):
            frozen[name] = AdaptedQuantised(module, compute_type(device))
        elif name in layers:
            bias = getattr(module, "bias", None)
            frozen[name] = AdaptedLinear(weight_of(module), None if bias is None else bias.detach())
        elif adds_its_bias(module):
            frozen[name] = AddedBias(module)
        else:
            raise UserError(
                f"bias: all: the bias of {name} ({type(module).__name__}) cannot be trained beside "
                "adapters; use bias: lora_only"
            )
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, last, frozen[name])
    return frozen
