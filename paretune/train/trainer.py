"""One optimizer step of a cohort: the same batch, loss, clipping and update for every method."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from paretune.data.blocks import Batch, Blocks
from paretune.data.order import rows_for_step
from paretune.model.passes import Pass
from paretune.model.trainee import CPU_TOKENS, Trainee
from paretune.study.memory import SHARE, cohort_bytes, rows_that_fit
from paretune.study.shapes import Batch as StepRows
from paretune.study.shapes import ModelShape
from paretune.train.divergence import Divergence
from paretune.train.optim import PerArmOptimizer, put
from paretune.train.piece import Piece, PieceRunner
from paretune.train.schedule import Resolved
from paretune.train.state import read_state, shards_of

# Gradients are views into one matrix by design (see Flat), which autograd remarks on
warnings.filterwarnings("ignore", message="grad and param do not obey")


@dataclass
class _Log:
    """Per-step numbers, left on the device until somebody reads them."""

    steps: list[int] = field(default_factory=list)
    loss_K: list[torch.Tensor] = field(default_factory=list)
    norm_K: list[torch.Tensor] = field(default_factory=list)
    rate_K: list[torch.Tensor] = field(default_factory=list)


class Trainer:
    """Trains the arms of one :class:`Trainee`.

    The loss of a step is the sum over arms of each arm's mean over its loss tokens, so an arm's
    gradient is what it would be alone. Clipping, learning rate and divergence are per arm.

    Args:
        trainee: the arms and the model that carries them.
        blocks: training data; each arm reads it in the order of its own seed.
        batch_size: rows of each arm in a step.
    """

    def __init__(self, trainee: Trainee, blocks: Blocks, batch_size: int) -> None:
        self.trainee = trainee
        self.blocks = blocks
        self.batch_size = batch_size
        self.vocabulary = int(trainee.model.config.vocab_size)
        self.optimizers = [
            PerArmOptimizer(flat, [trainee.arms[i] for i in flat.arms]) for flat in trainee.flats
        ]
        self._peak = [arm.learning_rate for arm in trainee.arms]
        self._clip_K = torch.tensor(
            [arm.clip if arm.clip is not None else math.inf for arm in trainee.arms],
            device=trainee.device,
        )
        self.runner = self._new_runner()
        self._capacity = blocks.most_segments() if self.runner.attends else 0
        self.divergence = self._new_divergence()
        self._log = _Log()
        self._expected_bytes = 0
        trainee.rows = self._rows_on_cpu()

    def _new_runner(self) -> PieceRunner:
        return PieceRunner(self.trainee)

    def restart(self) -> None:
        """Go back to the initial weights with fresh optimizer state, for another leg."""
        self.trainee.reset()
        for optimizer in self.optimizers:
            for value in optimizer.state.values():
                value.zero_()
        self.divergence = self._new_divergence()
        self._log = _Log()

    def step(self, t: int, schedules: list[Resolved]) -> None:
        """Optimizer step number ``t`` (0-based) of every arm that is still alive.

        Args:
            schedules: one for each arm, in cohort order.
        """
        trainee = self.trainee
        batches = self._batches(t)
        self._zero_grad()
        loss_K = torch.zeros(len(trainee.arms), device=trainee.device)
        for group in trainee.passes:
            if trainee.device.type == "cpu" and not self.alive(group):
                continue
            loss_K[group.start : group.stop] = self._accumulate(group, batches, t)
        norm_K = self._norms(loss_K)
        alive_K = self.divergence.watch(t + 1, loss_K, norm_K)
        # torch.nn.utils.clip_grad_norm_'s formula, arm by arm
        scale_K = (self._clip_K / (norm_K + 1e-6)).clamp(max=1.0)
        scale_K = torch.where(alive_K, scale_K, 0.0)
        rates = [p * s.factor(t) for p, s in zip(self._peak, schedules, strict=True)]
        rate_K = put(torch.tensor(rates, dtype=torch.float64), trainee.device) * alive_K
        self._update(t + 1, rate_K, scale_K)
        self._log.steps.append(t + 1)
        self._log.loss_K.append(loss_K)
        self._log.norm_K.append(norm_K)
        self._log.rate_K.append(rate_K)

    def alive(self, group: Pass) -> bool:
        """Whether any arm of a pass still trains (waits for the device)."""
        return bool(self.divergence.alive_K[group.start : group.stop].any())

    def curve(self) -> list[list[dict[str, Any]]]:
        """The rows of train.jsonl gathered since the last call, one list an arm."""
        log, self._log = self._log, _Log()
        rows: list[list[dict[str, Any]]] = [[] for _ in self.trainee.arms]
        if not log.steps:
            return rows
        columns = [torch.stack(v).tolist() for v in (log.loss_K, log.norm_K, log.rate_K)]
        tokens = self.batch_size * self.blocks.block_length
        verdicts = self.divergence.verdicts()
        for i, step in enumerate(log.steps):
            for position, row in enumerate(rows):
                if position in verdicts and step > verdicts[position][0]:
                    continue
                loss, norm, rate = (column[i][position] for column in columns)
                row.append(
                    {
                        "step": step,
                        "tokens": step * tokens,
                        "loss": _finite(loss),
                        "grad_norm": _finite(norm),
                        "learning_rate": rate,
                    }
                )
        return rows

    def state(self, position: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Everything a resumed run needs of one arm: tensors, and the divergence watch."""
        index, row = self._locate(position)
        tensors = {"values": self.trainee.flats[index].values[row]}
        tensors |= {name: value[row] for name, value in self.optimizers[index].state.items()}
        return tensors | self._anchor(position), self.divergence.state(position)

    def restore(
        self, position: int, tensors: dict[str, torch.Tensor], watch: dict[str, float]
    ) -> None:
        """Undo of :meth:`state`."""
        index, row = self._locate(position)
        if tensors:
            self.trainee.flats[index].values[row].copy_(tensors["values"])
            self.trainee.flats[index].refresh()
            for name, value in self.optimizers[index].state.items():
                value[row].copy_(tensors[name])
        found = self.trainee.anchor(position)
        if found is not None:
            anchor, own = found
            anchor.restore(own, tensors)
        self.divergence.restore(position, watch)

    def resume(self, position: int, folder: Path, leg: str, step: int) -> None:
        """Go on with an arm from its state in ``folder``, which is intact."""
        self.restore(position, *read_state(folder, leg, step))
        shards = shards_of(folder, leg, step)
        if shards.exists():
            self.load_shards(position, shards)

    def save_shards(self, position: int, folder: Path) -> dict[str, str]:
        """Write what :meth:`state` leaves out of a sharded arm; returns checksums by file name."""
        return {}

    def load_shards(self, position: int, folder: Path) -> None:
        """Take what several processes wrote of a sharded arm."""
        from paretune.train.sharded_state import load_shards

        index, row = self._locate(position)
        flat = self.trainee.flats[index]
        kinds = {"values": flat.values, **self.optimizers[index].state}
        load_shards(folder, {kind: flat.tensors(row, value) for kind, value in kinds.items()})
        flat.refresh()

    def weights(self, position: int) -> dict[str, torch.Tensor]:
        """Named views of one arm's trained tensors, and of what a PiSSA arm subtracts."""
        index, row = self._locate(position)
        return self.trainee.flats[index].tensors(row) | self._anchor(position)

    def fit_memory(self, shape: ModelShape, *, surplus: float = 1.0) -> None:
        """Choose how many rows go through a GPU at once, by the memory model.

        Nothing to do on a CPU. Results do not depend on it beyond rounding. Where not one row fits,
        activations are checkpointed. If the device refuses all the same, pieces become smaller
        until they are single rows, and then of these, too, activations are checkpointed.

        Args:
            surplus: how many times the model's peak earlier runs on this device have measured.
        """
        trainee = self.trainee
        device = trainee.device
        if device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(device)
        limit = SHARE["cuda"] * (free + torch.cuda.memory_reserved(device)) / surplus
        batch = StepRows(self.batch_size, self.blocks.block_length)
        trained = {trainee.arms[i].id: flat.count for flat in trainee.flats for i in flat.arms}
        for checkpoint in (False, True):
            rows = rows_that_fit(
                shape, trainee.arms, trained, batch, limit, "cuda", checkpoint=checkpoint
            )
            trainee.rows, trainee.checkpoint = max(1, rows), checkpoint
            if rows:
                break
        self._expected_bytes = cohort_bytes(
            shape,
            trainee.arms,
            trained,
            batch,
            trainee.rows,
            "cuda",
            checkpoint=trainee.checkpoint,
        )

    def seconds_until_idle(self) -> float:
        """Wait until the device has done all it was given; the monotonic clock's reading then."""
        if self.trainee.device.type == "cuda":
            torch.cuda.synchronize(self.trainee.device)
        return time.monotonic()

    def peak_memory(self) -> dict[str, int]:
        """Bytes at the peak on a GPU: ``measured``, and ``expected`` by the memory model."""
        device = self.trainee.device
        if device.type != "cuda":
            return {}
        measured = torch.cuda.max_memory_allocated(device)
        return {"measured_bytes": measured, "expected_bytes": self._expected_bytes}

    def _zero_grad(self) -> None:
        for flat in self.trainee.flats:
            flat.zero_grad()

    def _norms(self, loss_K: torch.Tensor) -> torch.Tensor:
        """Norm [K] of each arm's gradient."""
        norm_K = torch.zeros_like(loss_K)
        for flat in self.trainee.flats:
            norm_K[flat.positions] = flat.grad_norm()
        return norm_K

    def _update(self, t: int, rate_K: torch.Tensor, scale_K: torch.Tensor) -> None:
        for flat, optimizer in zip(self.trainee.flats, self.optimizers, strict=True):
            optimizer.step(t, rate_K[flat.positions], scale_K[flat.positions])

    def _batches(self, t: int) -> dict[int, Batch]:
        """The batch of step ``t`` for each seed among the arms."""
        return {
            seed: self.blocks.batch(rows_for_step(self.blocks.count, self.batch_size, t, seed))
            for seed in dict.fromkeys(arm.seed for arm in self.trainee.arms)
        }

    def _accumulate(self, group: Pass, batches: dict[int, Batch], t: int) -> torch.Tensor:
        """Gradients of a pass over its batch, in pieces that fit; returns each arm's loss [k]."""
        trainee = self.trainee
        while True:
            try:
                return self._pieces(group, batches, t)
            except torch.OutOfMemoryError:
                if trainee.rows > 1:
                    smaller = range(trainee.rows - 1, 0, -1)
                    trainee.rows = next(rows for rows in smaller if self.batch_size % rows == 0)
                elif not trainee.checkpoint:
                    trainee.checkpoint = True
                else:
                    raise
                self.runner.release()
            except RuntimeError as error:
                if not self.runner.simplify(error):
                    raise
            for flat in trainee.flats_of(group):
                flat.zero_grad()

    def _pieces(self, group: Pass, batches: dict[int, Batch], t: int) -> torch.Tensor:
        trainee, rows = self.trainee, self.trainee.rows
        own = [batches[arm.seed] for arm in trainee.arms[group.start : group.stop]]
        heads = self.runner.heads(group)
        total_K = torch.zeros(group.count, device=trainee.device)
        for first in range(0, self.batch_size, rows):
            part = slice(first, min(first + rows, self.batch_size))
            piece = Piece.of(own, part, trainee.device, self._capacity, heads)
            total_K += self.runner.run(group, piece, t, first * self.blocks.block_length)
            if rows < self.batch_size:
                for flat in trainee.flats_of(group):
                    flat.gather()
        return total_K

    def _anchor(self, position: int) -> dict[str, torch.Tensor]:
        found = self.trainee.anchor(position)
        return {} if found is None else found[0].row(found[1])

    def _locate(self, position: int) -> tuple[int, int]:
        for index, flat in enumerate(self.trainee.flats):
            if position in flat.arms:
                return index, flat.arms.index(position)
        raise IndexError(position)

    def _new_divergence(self) -> Divergence:
        return Divergence(len(self.trainee.arms), self.vocabulary, self.trainee.device)

    def _rows_on_cpu(self) -> int:
        return max(1, min(self.batch_size, CPU_TOKENS // self.blocks.block_length))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
