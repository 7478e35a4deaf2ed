"""Training over several processes with PyTorch's FSDP2: a base that does not fit one device.

Started by torchrun. Each process takes a stretch of every batch and holds a share of the weights;
a block's weights are whole only while it computes. What is shared of LoRA cohorts is the frozen
base; adapters are small, so each process has them all. Gradients are sums over all processes, so an
arm is trained as by one process, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from paretune.data.blocks import Batch, Blocks
from paretune.model.flat import Flat, compute_type
from paretune.model.layers import linear_layers
from paretune.model.passes import Pass
from paretune.model.regions import Compiler
from paretune.model.sharded import ShardedTrainee
from paretune.model.trainee import Trainee
from paretune.study.shapes import ModelShape
from paretune.train import gloo
from paretune.train.loss import IGNORED
from paretune.train.piece import Piece, PieceRunner
from paretune.train.sharded_optim import ShardedOptimizer
from paretune.train.sharded_state import load_shards, save_shards
from paretune.train.trainer import Trainer


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, on this one's device: gloo on a CPU, else NCCL."""
    own = torch.device(device)
    if device != "cpu":
        own = torch.device(device, dist.get_node_local_rank())
        torch.cuda.set_device(own)
    # What lies in host memory (commands, offloaded shards) goes through gloo on a GPU too
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield own
    finally:
        dist.destroy_process_group()
        gloo.rest()


class ShardedTrainer(Trainer):
    """What training of sharded arms of any method has in common; every process makes every call.

    Args:
        rows: rows of each arm that go through a device at a time.
        expected: bytes that the plan gives a device.
    """

    def __init__(
        self,
        trainee: ShardedTrainee,
        blocks: Blocks,
        batch_size: int,
        rows: int | None = None,
        expected: int = 0,
    ) -> None:
        super().__init__(trainee, blocks, batch_size)
        self._expected_bytes = expected
        share = -(-batch_size // dist.get_world_size())
        if rows is not None:
            trainee.rows = min(rows, share)
        elif trainee.device.type == "cuda":
            trainee.rows = 1

    def fit_memory(self, shape: ModelShape, *, surplus: float = 1.0) -> None:
        """Nothing: the plan has said how many rows go through at a time."""

    def _new_runner(self) -> PieceRunner:
        """Neither compiled nor replayed: FSDP's exchanges stand between the blocks."""
        return PieceRunner(self.trainee, compiler=Compiler("none"), graphs=False)

    def _accumulate(self, group: Pass, batches: dict[int, Batch], t: int) -> torch.Tensor:
        # One process cannot go on in smaller pieces than the others
        return self._pieces(group, batches, t)


class ShardedCohort(ShardedTrainer):
    """A LoRA cohort over a sharded base; everything else as in :class:`Trainer`."""

    def _pieces(self, group: Pass, batches: dict[int, Batch], t: int) -> torch.Tensor:
        own = [batches[arm.seed] for arm in self.trainee.arms[group.start : group.stop]]
        total_K = torch.zeros(group.count, device=self.trainee.device)
        for first, piece in own_pieces(own, self.batch_size, self.trainee.rows, self.trainee):
            total_K += self.runner.run(group, piece, t, first * self.blocks.block_length)
        dist.all_reduce(total_K)
        for flat in self.trainee.flats_of(group):
            for part in flat.parts:
                dist.all_reduce(part.grad_KC)
        return total_K


class ShardedFull(ShardedTrainer):
    """Full finetuning of one arm with weights, gradients and optimizer states sharded."""

    def __init__(
        self,
        trainee: ShardedTrainee,
        blocks: Blocks,
        batch_size: int,
        rows: int | None = None,
        expected: int = 0,
    ) -> None:
        super().__init__(trainee, blocks, batch_size, rows, expected)
        self._parameters: dict[str, Any] = dict(trainee.model.named_parameters())
        self._sharded = ShardedOptimizer(self._parameters, trainee.arms[0])
        self._untouched = True

    def restart(self) -> None:
        """Go back to the base's weights with fresh optimizer state; at the start nothing is due."""
        if not self._untouched:
            super().restart()
            self._sharded.reset()
        self._untouched = True

    def state(self, position: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """The divergence watch; weights and optimizer states are in :meth:`save_shards`."""
        return {}, self.divergence.state(position)

    def restore(
        self, position: int, tensors: dict[str, torch.Tensor], watch: dict[str, float]
    ) -> None:
        """Undo of :meth:`state`; also takes what one process alone has written."""
        self._untouched = False
        if tensors:
            self._from_whole(tensors)
        self.divergence.restore(position, watch)

    def save_shards(self, position: int, folder: Path) -> dict[str, str]:
        """Write weights and optimizer states; each process writes its own shards."""
        return save_shards(folder, self._tensors())

    def load_shards(self, position: int, folder: Path) -> None:
        """Undo of :meth:`save_shards`, for any number of processes."""
        load_shards(folder, self._tensors())

    def weights(self, position: int) -> dict[str, torch.Tensor]:
        """The arm's weights, whole and in host memory, in the first process; nothing elsewhere."""
        found = {}
        for name, value in self._parameters.items():
            whole = value.detach().full_tensor().cpu()
            if dist.get_rank() == 0:
                found[name] = whole
        return found

    def _tensors(self) -> dict[str, dict[str, Any]]:
        cast(ShardedTrainee, self.trainee).reshard()
        values = {name: value.detach() for name, value in self._parameters.items()}
        return {"values": values, **self._sharded.state}

    def _from_whole(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take this process's share of rows [P] that hold all of an arm's tensors."""
        shapes = {name: tuple(value.shape) for name, value in self._parameters.items()}
        low = compute_type(self.trainee.device) == torch.bfloat16
        copied = [f"{name}.weight" for name in linear_layers(self.trainee.model)] if low else ()
        layout = Flat.layout(shapes, copied)
        for kind, shards in self._tensors().items():
            for name, shard in shards.items():
                offset, shape = layout[name]
                whole = tensors[kind][offset : offset + math.prod(shape)].view(shape)
                local = shard.to_local()
                first = _first_row(shard)
                local.copy_(whole[first : first + len(local)])

    def _zero_grad(self) -> None:
        for value in self._parameters.values():
            value.grad = None

    def _norms(self, loss_K: torch.Tensor) -> torch.Tensor:
        squares = [
            torch.linalg.vector_norm(value.grad.to_local(), dtype=torch.float32) ** 2
            for value in self._parameters.values()
            if value.grad is not None
        ]
        total = torch.stack(squares).sum().to(loss_K.device)
        dist.all_reduce(total)
        return total.sqrt()[None]

    def _update(self, t: int, rate_K: torch.Tensor, scale_K: torch.Tensor) -> None:
        self._untouched = False
        self._sharded.step(t, rate_K, scale_K)

    def _pieces(self, group: Pass, batches: dict[int, Batch], t: int) -> torch.Tensor:
        batch = batches[self.trainee.arms[0].seed]
        total_K = torch.zeros(1, device=self.trainee.device)
        own = list(own_pieces([batch], self.batch_size, self.trainee.rows, self.trainee))
        model = cast(FSDPModule, self.trainee.model)
        for number, (first, piece) in enumerate(own):
            model.set_is_last_backward(number + 1 == len(own))
            # FSDP gives the mean over processes; the loss is a sum of their parts
            piece.weight_K.mul_(dist.get_world_size())
            total_K += self.runner.run(group, piece, t, first * self.blocks.block_length)
        dist.all_reduce(total_K)
        return total_K / dist.get_world_size()


def _first_row(shard: Any) -> int:
    """Where a tensor's local rows begin in the whole one: FSDP2 cuts it as ``torch.chunk`` does."""
    rows = int(shard.shape[0])
    return min(dist.get_rank() * -(-rows // dist.get_world_size()), rows)


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
