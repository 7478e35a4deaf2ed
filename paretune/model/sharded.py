"""A base spread over processes with PyTorch's FSDP2: each holds a share of every weight.

Only the first process reads the base. The others know its shape, and receive it block by block, so
that no device ever holds more than one whole block, and the machine's memory one whole base.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import distribute_tensor

from paretune.model.compilation import repeated_blocks
from paretune.model.flat import compute_type
from paretune.model.load import load_model, load_shape
from paretune.model.lora_cohort import lora_cohort
from paretune.model.packed import PackedModel
from paretune.model.passes import Pass
from paretune.model.trainee import Trainee
from paretune.study.arms import ArmConfig
from paretune.study.config import Base


class ShardedTrainee(Trainee):
    """Arms over a sharded model; FSDP gathers weights around the model's own forward pass."""

    @cached_property
    def head_is_linear(self) -> bool:
        """Never taken for that: the head has no whole weight outside of the forward pass."""
        return False

    @cached_property
    def packed(self) -> PackedModel:
        """The model over rows that are packed as trees, with masks rather than compiled."""
        return PackedModel(self.model, self.forward, None, self.device, flex=False)

    @property
    def decodes_in_slots(self) -> bool:
        """Slots decode with whole weights."""
        return False

    def reset(self) -> None:
        """Give every arm its initial weights again."""
        for group in self.passes:
            for bank in group.banks:
                bank.reset()
        if self.is_full:
            self._reset_base()

    def reshard(self) -> None:
        """Before weights are written: FSDP keeps what stands outside of the blocks whole after a
        forward pass, and would go on with that.
        """
        cast(FSDPModule, self.model).reshard()

    @torch.no_grad()
    def _reset_base(self) -> None:
        self.reshard()
        whole = _first_reads(self.base, torch.float32)
        values = dict(whole.named_parameters())
        named: dict[str, Any] = dict(self.model.named_parameters())
        for name, own in named.items():
            value = torch.empty(own.shape, dtype=own.dtype, device=self.device)
            if dist.get_rank() == 0:
                value.copy_(values[name])
            spread = distribute_tensor(value, own.device_mesh, own.placements)
            own.to_local().copy_(spread.to_local())


def sharded_base(base: Base, device: torch.device, *, offload: bool = False) -> ShardedTrainee:
    """The base as it is, sharded, with nothing to train."""
    model = _first_reads(base, compute_type(device))
    shard(model, device, offload=offload)
    return ShardedTrainee(model, [], [], [], None, device, base)


def sharded_cohort(
    base: Base,
    arms: list[ArmConfig],
    device: torch.device,
    *,
    recompute: bool = False,
    offload: bool = False,
) -> ShardedTrainee:
    """LoRA arms over a sharded frozen base; each process has all adapters."""
    model = _first_reads(base, compute_type(device))
    whole = lora_cohort(base, arms, device, model=model)
    shard(model, device, recompute=recompute, offload=offload)
    return ShardedTrainee(model, whole.arms, whole.flats, whole.passes, whole.adapted, device, base)


def sharded_full(
    base: Base,
    arm: ArmConfig,
    device: torch.device,
    *,
    recompute: bool = False,
    offload: bool = False,
) -> ShardedTrainee:
    """Full finetuning of one arm; masters are float32 and sharded."""
    model = _first_reads(base, torch.float32)
    model.requires_grad_(True)
    shard(model, device, recompute=recompute, offload=offload)
    return ShardedTrainee(model, [arm], [], [Pass(0, 1, ())], None, device, base)


def shard(
    model: torch.nn.Module, device: torch.device, *, recompute: bool = False, offload: bool = False
) -> None:
    """Spread the first process's model over all processes, block by block, in place.

    Args:
        model: whole in the first process; on the meta device, or with any values, in the others.
        recompute: activation checkpointing: keep a block's input alone and compute it again.
        offload: keep shards, gradients and optimizer states in host memory.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    pinned = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    place = pinned if offload else OffloadPolicy()
    done: set[torch.nn.Module] = set()
    for block in repeated_blocks(model):
        _receive(block, device, done)
        if recompute:
            block.forward = checkpoint_wrapper(_Forward(block.forward)).forward
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=place)
    _receive(model, device, done)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=place)


class _Forward(torch.nn.Module):
    """A block's own forward as a module, so that recomputing does not rename its parameters."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self._call = forward

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        return self._call(*inputs, **settings)


def _first_reads(base: Base, dtype: torch.dtype) -> torch.nn.Module:
    """The base in the first process; its shape in the others."""
    if dist.get_rank() == 0:
        return load_model(base, torch.device("cpu"), dtype=dtype)
    model = load_shape(base).to(dtype)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def _receive(module: torch.nn.Module, device: torch.device, done: set[torch.nn.Module]) -> None:
    """Put what the first process has into a module's parameters and buffers, on the device.

    Args:
        done: modules that have theirs; this one's are added.
    """
    owners = [owner for owner in module.modules() if owner not in done]
    done.update(owners)
    slots = [(owner, name, old) for owner in owners for name, old in _tensors(owner)]
    facts: list[Any] = [[(tuple(old.shape), old.dtype) for _, _, old in slots]]
    dist.broadcast_object_list(facts, src=0, device=torch.device("cpu"))
    received: dict[torch.Tensor, torch.Tensor] = {}  # a tensor may be shared by several modules
    for (owner, name, old), (shape, dtype) in zip(slots, facts[0], strict=True):
        if old not in received:
            new = torch.empty(shape, dtype=dtype, device=device)
            if dist.get_rank() == 0:
                new.copy_(old)
            dist.broadcast(new, src=0)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            received[old] = new
        if name in owner._parameters:
            owner._parameters[name] = cast(torch.nn.Parameter, received[old])
        else:
            owner._buffers[name] = received[old]


def _tensors(owner: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in [*owner._parameters.items(), *owner._buffers.items()]:
        if value is not None:
            yield name, value
