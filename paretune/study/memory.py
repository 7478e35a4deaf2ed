"""What training takes of a device, from a model's shape and the arms: bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paretune.study.arms import ArmConfig
from paretune.study.shapes import Batch, Machine, ModelShape
from paretune.study.sharding import EAGER, Sharding, best_sharding

# Bytes of one float32 [tokens, V] slice of the loss: on a CPU it stays in the cache, on a GPU it
# fills the chip. Where the head is trained, every slice adds to a gradient as large as the head
SLICE_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
SLICE_BYTES_TRAINED = {"cpu": 4 * 2**20, "cuda": 4 * 2**30}
# Bytes of a trained float32 value, its gradient and its moments; and the same in bf16 training
_BYTES_TRAINED = {"adamw": 16, "lion": 12}
_COPY = 2
# Workspaces of matrix products, and what the allocator loses to rounding
_WORKSPACE = 300 * 2**20
# Shares of the measured rate of one large product that training reaches, measured on an H200: all
# products; attention, forward and backward
_PRODUCTS, _ATTENTION = 0.89, 0.54
# Times that what linear layers take and give moves through memory in one step, all told
_PASSES = 14
# Bytes that an update moves for each trained value
_UPDATE_BYTES = 32
# The rate's share that a step reaches on a CPU, whatever it does
CPU_EFFICIENCY = 0.35


def cohort_bytes(
    shape: ModelShape,
    arms: Sequence[ArmConfig],
    trained: Mapping[str, int],
    batch: Batch,
    rows: int,
    kind: str,
    *,
    checkpoint: bool = False,
) -> int:
    """Peak memory of a cohort's training when ``rows`` rows of each arm go through at a time.

    The base, each arm's weights, gradients and moments; what the forward pass keeps; and the larger
    of the two moments at which most is needed beside that: the loss's logits, and the backward pass
    of one block.

    Args:
        checkpoint: only what enters a block is kept (activation checkpointing).
    """
    full = arms[0].method == "full"
    if kind == "cpu":
        # Arms pass one by one
        base = 0 if full else 4 * shape.parameters
        state = sum(trained[a.id] * _BYTES_TRAINED[a.optimizer] for a in arms)
        return base + state + 4 * EAGER * rows * batch.length * shape.kept
    tokens = len(arms) * rows * batch.length
    state = sum(trained[a.id] * _BYTES_TRAINED[a.optimizer] for a in arms)
    kept = 2 * tokens * _kept(shape, arms, checkpoint=checkpoint)
    head = 2 * 2 * min(tokens, SLICE_BYTES["cuda"] // (4 * shape.vocabulary)) * shape.vocabulary
    if full:
        # Matrices have gradients and copies of 2 bytes each; gradients of pieces are summed in 4
        state += (4 if rows < batch.rows else 0) * shape.matrices
        # The residual stream is float32
        kept += (1 if checkpoint else 2) * 2 * tokens * shape.width * shape.blocks
        slice_tokens = min(tokens, SLICE_BYTES_TRAINED["cuda"] // (4 * shape.vocabulary))
        # The gradient of each arm's head is made apart from its embedding's
        heads = 6 * shape.vocabulary * shape.width * len(arms)
        head = 4 * slice_tokens * shape.vocabulary + heads
        weights = 0
    else:
        weights = 2 * shape.parameters
        state += _COPY * sum(trained[a.id] for a in arms)
        # What PiSSA subtracts is about as large as what it trains
        state += (4 + _COPY) * sum(trained[a.id] for a in arms if a.init == "pissa")
        layers = shape.layers / shape.blocks if checkpoint else shape.layers
        kept += int(sum(2 * rows * batch.length * layers * (a.rank or 0) for a in arms))
    hidden = 3 * 2 * tokens * shape.width
    block = 2 * tokens * shape.widest
    return weights + state + kept + hidden + max(head, block) + _WORKSPACE


def _kept(shape: ModelShape, arms: Sequence[ArmConfig], *, checkpoint: bool) -> int:
    """Values of a token that a GPU keeps from the forward pass for the backward pass.

    Compiled blocks keep what linear layers give, and the attention's output; they compute again
    what else linear layers take. Attention dropout and a quantised base are not compiled.
    """
    times = EAGER if shape.eager or any(arm.attention_dropout for arm in arms) else 1
    if checkpoint:
        return shape.width * shape.blocks + times * shape.widest
    return times * shape.kept if times > 1 else shape.outputs + shape.attended


def rows_that_fit(
    shape: ModelShape,
    arms: Sequence[ArmConfig],
    trained: Mapping[str, int],
    batch: Batch,
    limit: float,
    kind: str,
    *,
    checkpoint: bool = False,
) -> int:
    """The largest divisor of the batch whose rows fit in ``limit`` bytes; 0 if none does.

    A divisor, because all pieces of a batch share one shape.
    """
    for pieces in range(1, batch.rows + 1):
        rows, left = divmod(batch.rows, pieces)
        if left:
            continue
        if cohort_bytes(shape, arms, trained, batch, rows, kind, checkpoint=checkpoint) <= limit:
            return rows
    return 0


def step_seconds(
    shape: ModelShape,
    arms: Sequence[ArmConfig],
    trained: Mapping[str, int],
    batch: Batch,
    machine: Machine,
) -> float:
    """Expected time of one step of all arms.

    4 N FLOPs a token for LoRA (forward, and the backward pass to the inputs), 6 N for full
    finetuning, N without the embedding's look-up; on a GPU also 7 S^2 a row for each value of the
    query (causal attention, forward and backward), memory traffic, and the updates. The traffic
    is counted in what linear layers take and give, be it kept or computed again.
    """
    full = arms[0].method == "full"
    tokens = len(arms) * batch.rows * batch.length
    count = sum(trained[a.id] for a in arms)
    per_token = (6 if full else 4) * (shape.matrices + shape.vocabulary * shape.width)
    if machine.kind == "cpu" or not machine.bandwidth:
        adapters = 0 if full else 6 * count * batch.rows * batch.length
        return (per_token * tokens + adapters) / (CPU_EFFICIENCY * machine.flops)
    attention = 7 * batch.length * tokens * shape.attended
    moved = _PASSES * 2 * tokens * shape.kept + _UPDATE_BYTES * count
    return (
        per_token * tokens / (_PRODUCTS * machine.flops)
        + attention / (_ATTENTION * machine.flops)
        + moved / machine.bandwidth
    )


# Share of the device's memory that a plan fills; the rest is for what the plan does not know. A
# CPU's memory is shared with everything else
SHARE = {"cuda": 0.92, "cpu": 0.5}


@dataclass(frozen=True)
class Workload:
    """A study's steps on one machine: what cohorts are sized by.

    Attributes:
        full_together: whether the base's weights can carry several full arms at once.
        devices_per_cohort: the study's own choice, which shards every cohort.
        offload: sharded cohorts keep in host memory what they share.
    """

    shape: ModelShape
    batch: Batch
    machine: Machine
    full_together: bool = False
    devices_per_cohort: int | None = None
    offload: bool = False

    def rows(
        self,
        arms: Sequence[ArmConfig],
        trained: Mapping[str, int],
        *,
        checkpoint: bool = False,
    ) -> int:
        """Rows of each arm that go through at a time; 0 where not even one fits."""
        kind = self.machine.kind
        limit = SHARE[kind] * self.machine.memory
        return rows_that_fit(
            self.shape, arms, trained, self.batch, limit, kind, checkpoint=checkpoint
        )

    def sharding(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> Sharding | None:
        """How a cohort is sharded; None where one device has room for it, or all there is (a CPU).

        With ``devices`` 0 where no number of devices is enough.
        """
        here = self.machine.kind == "cpu" or self._fits_one(arms, trained)
        return None if self.devices_per_cohort is None and here else self._sharded(arms, trained)

    def base_sharding(self) -> Sharding | None:
        """How the base is sharded to be scored; None where one device has room for it."""
        kind = self.machine.kind
        whole = 2 * self.shape.parameters + 2 * _WORKSPACE
        small = kind == "cpu" or whole <= SHARE[kind] * self.machine.memory
        if self.devices_per_cohort is None and small:
            return None
        return self._sharded((), {})

    def devices(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> int:
        """Devices of this kind that a cohort needs; 0 where no number is enough."""
        found = self.sharding(arms, trained)
        return 1 if found is None else found.devices

    def fits(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> bool:
        """Whether arms can train together: on one device, or over as many as there are here.

        What is sharded anyway may take more devices for more arms, up to those of the machine.
        """
        if self.devices_per_cohort is None and self._fits_one(arms[:1], trained):
            return bool(self.rows(arms, trained))
        found = self.sharding(arms, trained)
        if found is None:
            return bool(self.rows(arms, trained))
        return 0 < found.devices <= max(self.machine.devices, self.devices_per_cohort or 1)

    def bytes(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> int:
        """Expected peak memory of a cohort on one device."""
        found = self.sharding(arms, trained)
        if found is not None and found.devices:
            return found.memory
        rows, checkpoint = self._way(arms, trained)
        kind = self.machine.kind
        return cohort_bytes(
            self.shape, arms, trained, self.batch, rows, kind, checkpoint=checkpoint
        )

    def seconds(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> float:
        """Expected time of one step of a cohort; a forward pass more under checkpointing."""
        found = self.sharding(arms, trained)
        again = found.recompute if found is not None else self._way(arms, trained)[1]
        devices = found.devices or 1 if found is not None and self.machine.kind == "cuda" else 1
        whole = step_seconds(self.shape, arms, trained, self.batch, self.machine)
        return (4 / 3 if again else 1.0) * whole / devices

    def _sharded(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> Sharding | None:
        kind, forced = self.machine.kind, self.devices_per_cohort
        if forced == 1 and not self.offload:
            return None
        # Processes on a CPU share its memory
        limit = SHARE[kind] * self.machine.memory / (forced or 1 if kind == "cpu" else 1)
        return best_sharding(
            self.shape, arms, trained, self.batch, kind, limit,
            devices=forced, least=1 if self.offload else 2, offload=self.offload,
        )  # fmt: skip

    def _fits_one(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> bool:
        return any(self.rows(arms, trained, checkpoint=again) for again in (False, True))

    def _way(self, arms: Sequence[ArmConfig], trained: Mapping[str, int]) -> tuple[int, bool]:
        """Rows at a time, and whether only checkpointing makes room for them."""
        rows = self.rows(arms, trained)
        if rows or self.machine.kind == "cpu":
            return max(1, rows), False
        return max(1, self.rows(arms, trained, checkpoint=True)), True
