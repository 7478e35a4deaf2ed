"""What is trained and scored: a cohort of LoRA arms over one frozen base, or one full arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from paretune.model.adapter import Active, AdaptedLinear, Bank
from paretune.model.attention import block_diagonal
from paretune.model.dropout import key
from paretune.model.flat import Flat
from paretune.model.layers import Layer, linear_layers, select, weight_of
from paretune.model.load import load_model
from paretune.model.slots.model import SlotModel
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

# Tokens in one forward pass on a CPU: beyond this, activations leave the cache and it gets slower
CPU_TOKENS = 1024


@dataclass(frozen=True)
class Pass:
    """Arms whose rows go through the model together: places ``start`` to ``stop`` of the cohort."""

    start: int
    stop: int
    banks: tuple[Bank, ...]

    @property
    def count(self) -> int:
        """Number of arms."""
        return self.stop - self.start


class Trainee:
    """Arms that train together, with the model that carries them.

    Attributes:
        arms: their configurations, in cohort order; every per-arm vector follows it.
        flats: trained values; each knows the cohort positions of its rows.
        passes: a partition of the arms into groups that share a forward pass.
        rows: rows of each arm in one forward pass; a batch is cut into pieces of this size.
    """

    def __init__(
        self,
        model: Any,
        arms: Sequence[ArmConfig],
        flats: Sequence[Flat],
        passes: Sequence[Pass],
        active: Active | None,
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
        self._active = active

    @property
    def is_full(self) -> bool:
        """Whether this is one full-finetuning arm (no adapters)."""
        return self._active is None

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 products on a GPU, nothing on a CPU; weights and the residual stay float32."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def reset(self) -> None:
        """Give every arm its initial weights again."""
        for group in self.passes:
            for bank in group.banks:
                bank.reset()
        if self.is_full:
            original = dict(load_model(self.base, torch.device("cpu")).named_parameters())
            with torch.no_grad():
                for name, own in self.flats[0].parameters.items():
                    own.copy_(original[name])

    @contextmanager
    def applied(
        self, group: Pass | None, *, step: int | None = None, first_row: int = 0
    ) -> Iterator[None]:
        """Apply the adapters of ``group`` (None: the base alone); with ``step``, dropout is on."""
        if self._active is None:
            with self._attention_dropout(step, first_row):
                yield
            return
        self._active.banks = list(group.banks) if group else []
        self._active.step, self._active.first_row = step, first_row
        try:
            yield
        finally:
            self._active.clear()

    @contextmanager
    def _attention_dropout(self, step: int | None, first_row: int) -> Iterator[None]:
        arm = self.arms[0] if self.arms else None
        if step is None or arm is None or not arm.attention_dropout:
            yield
            return
        # Only attention modules enter training mode: other dropouts of a base stay off for all arms
        modules = [m for m in self.model.modules() if hasattr(m, "attention_dropout")]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(key(arm.seed, step, first_row) & 0xFFFFFFFF)
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
        **settings: Any,
    ) -> Any:
        """The model's output for arm-major rows [K * B, S], under autocast."""
        if segments_NS is not None:
            dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            settings["attention_mask"] = block_diagonal(segments_NS, self.model, dtype)
        if position_ids_NS is not None:
            settings["position_ids"] = position_ids_NS
        with self.autocast():
            return self.model(input_ids=input_ids_NS, **settings)

    def view(self, group: Pass | None) -> ArmView:
        """The arms of ``group``, or the base under the adapters (None), for scoring."""
        if group is None and self._active is None and self.arms:
            raise ValueError("a full arm has no base beneath it")
        return ArmView(self, group)


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
        """Logits [K, B, S, V] of the same rows for every arm."""
        settings: dict[str, Any] = {"use_cache": False}
        if attention_mask_BS is not None:
            settings["attention_mask"] = attention_mask_BS.repeat(self.count, 1)
        if position_ids_BS is not None:
            settings["position_ids"] = position_ids_BS.repeat(self.count, 1)
        with self._trainee.applied(self._group):
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

    def slot_model(self) -> SlotModel:
        """These arms with the weights of this moment, for decoding many rows in slots."""
        banks = self._group.banks if self._group else ()
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        short = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        return SlotModel(
            self._trainee.model,
            banks,
            self.count,
            self.device,
            dtype,
            lambda _: self._trainee.forward(short, use_cache=False),
        )


def frozen(base: Base, device: torch.device) -> Trainee:
    """The base as it is, with nothing to train."""
    return Trainee(load_model(base, device), [], [], [], None, device, base)


def full_arm(base: Base, arm: ArmConfig, device: torch.device) -> Trainee:
    """Full finetuning of every weight of the base, in float32 masters."""
    model = load_model(base, device, attention_dropout=arm.attention_dropout)
    named = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    flat = Flat([0], shapes, arm_axis=False, device=device)
    for name, parameter in named.items():
        own = flat.parameters[name]
        with torch.no_grad():
            own.copy_(parameter)
        parameter.data, parameter.requires_grad = own.data, True
        parameter.grad = own.grad
    return Trainee(model, [arm], [flat], [Pass(0, 1, ())], None, device, base)


def lora_cohort(
    base: Base,
    arms: Sequence[ArmConfig],
    device: torch.device,
    *,
    arms_per_pass: int | None = None,
) -> Trainee:
    """LoRA arms over one frozen base; arms may differ in every setting.

    Args:
        arms_per_pass: arms in one forward pass; all by default. On a CPU one: larger products gain
            nothing there, and an arm's arithmetic is then the same to the bit in any cohort.

    Raises:
        UserError: a target that the base does not have.
    """
    model = load_model(base, torch.device("cpu"))
    layers = linear_layers(model)
    targets = {arm.id: tuple(select(layers, arm.targets or "all")) for arm in arms}
    # Arms of one shape stand side by side, so that they share a bank
    ordered = sorted(arms, key=lambda a: (a.rank or 0, targets[a.id], a.optimizer, a.id))
    size = arms_per_pass or (1 if device.type == "cpu" else len(ordered))
    active = Active()
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    _replace(model, layers, set().union(*targets.values()), active, compute)
    model.to(device)
    passes: list[Pass] = []
    for start in range(0, len(ordered), size):
        stop = min(start + size, len(ordered))
        banks: list[Bank] = []
        for first, last in _runs([_shape(ordered[i], targets) for i in range(start, stop)]):
            positions = list(range(start + first, start + last))
            own = [ordered[i] for i in positions]
            adapted = {name: layers[name] for name in targets[own[0].id]}
            banks.append(Bank(own, positions, adapted, device))
        passes.append(Pass(start, stop, tuple(banks)))
    flats = [bank.flat for group in passes for bank in group.banks]
    return Trainee(model, ordered, flats, passes, active, device, base)


def _shape(arm: ArmConfig, targets: dict[str, tuple[str, ...]]) -> tuple[Any, ...]:
    return (arm.rank, targets[arm.id], arm.optimizer)


def _runs(keys: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Stretches [first, last) of equal neighbouring keys."""
    first = 0
    for i in range(1, len(keys) + 1):
        if i == len(keys) or keys[i] != keys[first]:
            yield first, i
            first = i


def _replace(
    model: torch.nn.Module,
    layers: dict[str, Layer],
    adapted: set[str],
    active: Active,
    dtype: torch.dtype,
) -> None:
    """Put an :class:`AdaptedLinear` in the place of each adapted layer.

    Other linear layers keep their class; under autocast their products run in bf16 all the same.
    """
    for index, (name, layer) in enumerate(layers.items()):
        if name not in adapted:
            continue
        module = model.get_submodule(name)
        bias = getattr(module, "bias", None)
        new = AdaptedLinear(
            layer,
            index,
            weight_of(module).to(dtype),
            None if bias is None else bias.detach().to(dtype),
            active,
        )
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, last, new)
