"""Training over several processes with PyTorch's FSDP2: a base that does not fit one device.

Started by torchrun. Each process takes a stretch of every batch and holds a share of the weights;
a block's weights are whole only while it computes. What is shared of LoRA cohorts is the frozen
base; adapters are small, so each process has them all. Gradients are sums over all processes, so an
arm is trained as by one process, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

from paretune.data.blocks import Batch, Blocks
from paretune.errors import UserError
from paretune.model.compilation import repeated_blocks
from paretune.model.load import load_model
from paretune.model.passes import Pass
from paretune.model.trainee import Trainee
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train import gloo
from paretune.train.loss import IGNORED
from paretune.train.piece import Piece
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, on this one's device: gloo on a CPU, else NCCL."""
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    own = torch.device(device)
    if device != "cpu":
        own = torch.device(device, dist.get_node_local_rank())
        torch.cuda.set_device(own)
    try:
        yield own
    finally:
        dist.destroy_process_group()
        gloo.rest()


def shard(
    model: torch.nn.Module, device: torch.device, *, recompute: bool = False, offload: bool = False
) -> None:
    """Spread a model's parameters over all processes, block by block, in place.

    Args:
        recompute: activation checkpointing: keep a block's input alone and compute it again.
        offload: keep shards, gradients and optimizer states in host memory.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    place = CPUOffloadPolicy() if offload else OffloadPolicy()
    for block in repeated_blocks(model):
        if recompute:
            block.forward = checkpoint_wrapper(_Forward(block.forward)).forward
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=place)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=place)


class _Forward(torch.nn.Module):
    """A block's own forward as a module, so that recomputing does not rename its parameters."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self._call = forward

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        return self._call(*inputs, **settings)


class ShardedCohort(Trainer):
    """A LoRA cohort over a sharded base; everything else as in :class:`Trainer`.

    Args:
        trainee: of ``lora_cohort`` (the same in every process), its model not sharded yet.

    Raises:
        UserError: DoRA or trained biases, which read whole weights outside of a forward pass.
    """

    def __init__(
        self,
        trainee: Trainee,
        blocks: Blocks,
        batch_size: int,
        *,
        recompute: bool = False,
        offload: bool = False,
    ) -> None:
        for arm in trainee.arms:
            if arm.dora or arm.bias:
                raise UserError(f"{arm.id}: sharded training has no DoRA and no trained biases")
        super().__init__(trainee, blocks, batch_size)
        shard(trainee.model, trainee.device, recompute=recompute, offload=offload)
        # FSDP gathers weights around the model's own forward, so logits come from there
        self.runner._linear_head = False

    def _pieces(
        self, group: Pass, batches: dict[int, Batch], t: int, pieces: int | None
    ) -> torch.Tensor:
        own = [batches[arm.seed] for arm in self.trainee.arms[group.start : group.stop]]
        total_K = torch.zeros(group.count, device=self.trainee.device)
        for first, piece in own_pieces(own, self.batch_size, self.trainee.rows, self.trainee):
            total_K += self.runner.run(group, piece, t, first * self.blocks.block_length)
        dist.all_reduce(total_K)
        for flat in self.trainee.flats_of(group):
            for part in flat.parts:
                dist.all_reduce(part.grad_KC)
        return total_K


class ShardedFull:
    """Full finetuning of one arm with weights, gradients and optimizer states sharded.

    AdamW is torch's own, over the shards. The loss is the mean over the whole batch's loss tokens.

    Raises:
        UserError: an optimizer other than AdamW, or attention dropout.
    """

    def __init__(
        self,
        base: Base,
        arm: ArmConfig,
        blocks: Blocks,
        batch_size: int,
        device: torch.device,
        *,
        recompute: bool = False,
        offload: bool = False,
    ) -> None:
        if arm.optimizer != "adamw" or arm.attention_dropout:
            raise UserError(f"{arm.id}: sharded training has AdamW, and no attention dropout")
        model = load_model(base, torch.device("cpu"))
        model.requires_grad_(True)
        model.to("cpu" if offload else device)
        shard(model, device, recompute=recompute, offload=offload)
        self.model = cast(FSDPModule, model)
        self.trainee = Trainee(model, [arm], [], [Pass(0, 1, ())], None, device, base)
        self.arm, self.blocks, self.batch_size = arm, blocks, batch_size
        self.rows = 1 if device.type == "cuda" else batch_size
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=arm.learning_rate,
            betas=arm.betas or (0.9, 0.999),
            eps=arm.eps,
            weight_decay=arm.decay,
        )

    def step(self, t: int, schedule: Resolved) -> tuple[float, float]:
        """Optimizer step number ``t`` (0-based); returns the batch's loss and the gradient's norm.

        Both are of the whole batch, the same in every process.
        """
        from paretune.data.order import rows_for_step
        from paretune.train.loss import arm_losses

        batch = self.blocks.batch(
            rows_for_step(self.blocks.count, self.batch_size, t, self.arm.seed)
        )
        total_K = torch.zeros(1, device=self.trainee.device)
        pieces = list(own_pieces([batch], self.batch_size, self.rows, self.trainee))
        for number, (_, piece) in enumerate(pieces):
            # FSDP gives the mean over processes; the loss is a sum of their parts
            self.model.set_is_last_backward(number + 1 == len(pieces))
            out = self.trainee.forward(
                piece.ids,
                position_ids_NS=piece.positions,
                segments_NS=piece.segments,
                use_cache=False,
            )
            loss_K = arm_losses(out.logits, None, None, piece.labels, piece.weight_K)
            (loss_K.sum() * dist.get_world_size()).backward()  # type: ignore[no-untyped-call]
            total_K += loss_K.detach()
        dist.all_reduce(total_K)
        most = self.arm.clip if self.arm.clip is not None else float("inf")
        norm: Any = torch.nn.utils.clip_grad_norm_(self.trainee.model.parameters(), most)
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.arm.learning_rate * schedule.factor(t)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total_K), float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def own_pieces(
    batches: list[Batch], batch_size: int, rows: int, trainee: Trainee
) -> Iterator[tuple[int, Piece]]:
    """This process's stretch of a batch, in pieces of ``rows``; each with its first row's number.

    Every process has as many pieces as every other, or they would wait for each other for ever; one
    that has no row left takes the first again, without labels.
    """
    share = -(-batch_size // dist.get_world_size())
    begin = min(dist.get_rank() * share, batch_size)
    end = min(begin + share, batch_size)
    for offset in range(0, share, rows):
        first = begin + offset
        part = slice(first, min(first + rows, end))
        empty = part.start >= part.stop
        piece = Piece.of(batches, slice(0, 1) if empty else part, trainee.device)
        if empty:
            piece.labels.fill_(IGNORED)
        yield (0 if empty else first), piece
