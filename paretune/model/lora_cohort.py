"""A cohort of LoRA arms over one frozen base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from paretune.errors import UserError
from paretune.model.adapter import AdaptedLinear, AdaptedQuantised, Bank, Frozen, matrix_of
from paretune.model.biases import AddedBias, adds_its_bias, trained_biases
from paretune.model.flat import compute_type
from paretune.model.layers import Layer, linear_layers, select, weight_of
from paretune.model.load import load_model
from paretune.model.passes import Pass
from paretune.model.pissa import LeadingVectors
from paretune.model.quantised import QuantisedLinear, quantise
from paretune.model.trainee import Trainee
from paretune.study.arms import ArmConfig
from paretune.study.config import Base


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
