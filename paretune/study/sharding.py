"""What sharded training takes of each device: the numbers by which cohorts are spread (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paretune.study.arms import ArmConfig
from paretune.study.shapes import Batch, ModelShape

# Optimizer states of one trained float32 value, bytes
_STATES = {"adamw": 8, "lion": 4}
_MASTER = _GRADIENT = 4
_COPY = 2
# The loss's own float32 logits and their gradient; and workspaces of matrix products
_LOSS = 8
_WORKSPACE = 300 * 2**20
# Eager code keeps about twice what linear layers take and give
EAGER = 2
MOST_DEVICES = 512


@dataclass(frozen=True)
class Sharding:
    """How a cohort goes over several devices, and what each of them holds, in bytes.

    Attributes:
        devices: processes, each with a device of its own; 0 where no number is enough.
        rows: rows of each arm that go through a device at a time.
        recompute: activation checkpointing.
        gathered: weights that are whole while they compute, and the gradients made of them.
        host: of the machine's memory, for all processes together.
    """

    devices: int
    rows: int
    recompute: bool
    offload: bool
    weights: int
    gradients: int
    states: int
    gathered: int
    activations: int
    host: int

    @property
    def memory(self) -> int:
        """Expected peak of one device."""
        parts = self.weights + self.gradients + self.states + self.gathered + self.activations
        return parts + _WORKSPACE


def sharding(
    shape: ModelShape,
    arms: Sequence[ArmConfig],
    trained: Mapping[str, int],
    batch: Batch,
    kind: str,
    devices: int,
    *,
    rows: int = 1,
    recompute: bool = True,
    offload: bool = False,
) -> Sharding:
    """What each of ``devices`` holds.

    FSDP2 shards the base under a cohort, or a full arm's weights, gradients and moments. Whole on a
    device are, while they compute, two blocks (the second comes while the first computes) and what
    stands outside of the blocks; a LoRA cohort's adapters; and the activations of a device's rows.
    """
    full = bool(arms) and arms[0].method == "full"
    width = 2 if kind == "cuda" else 4
    count = sum(trained[arm.id] for arm in arms)
    states = sum(_STATES[arm.optimizer] * trained[arm.id] for arm in arms)
    block, outside = shape.matrices // shape.blocks, shape.parameters - shape.matrices
    gathered = width * (2 * block + outside)
    if full:
        shared = (_MASTER * count, _GRADIENT * count, states)
        # Gradients of a block are whole until they are summed over devices, in float32
        gathered += (width + _GRADIENT) * max(block, outside)
        own = (0, 0, 0)
    else:
        shared = (width * shape.parameters, 0, 0)
        copies = _COPY if kind == "cuda" else 0
        own = ((_MASTER + copies) * count, _GRADIENT * count, states)
    shares = tuple(-(-part // devices) for part in shared)
    host = 0
    if offload:
        host, shares = sum(shared), (0, 0, 0)
    together = max(1, len(arms)) if kind == "cuda" else 1
    tokens = together * rows * batch.length
    if recompute:
        kept = tokens * (shape.width * shape.blocks + EAGER * shape.widest)
    else:
        kept = EAGER * tokens * shape.kept
    layers = shape.layers / shape.blocks if recompute else shape.layers
    ranks = [] if full else [arm.rank or 0 for arm in arms[:together]]
    kept += int(sum(rows * batch.length * layers * rank for rank in ranks))
    logits = tokens * shape.vocabulary
    return Sharding(
        devices=devices,
        rows=rows,
        recompute=recompute,
        offload=offload,
        weights=shares[0] + own[0],
        gradients=shares[1] + own[1],
        states=shares[2] + own[2],
        gathered=gathered,
        activations=width * (kept + 2 * logits) + _LOSS * logits,
        host=host,
    )


def divisors(batch: int, devices: int) -> list[int]:
    """Rows at a time that cut a device's stretch of a batch into equal pieces, most first."""
    share = -(-batch // devices)
    return [rows for rows in range(share, 0, -1) if share % rows == 0]


def best_sharding(
    shape: ModelShape,
    arms: Sequence[ArmConfig],
    trained: Mapping[str, int],
    batch: Batch,
    kind: str,
    limit: float,
    *,
    devices: int | None = None,
    least: int = 2,
    offload: bool = False,
) -> Sharding:
    """The fewest devices that have room, with as many rows at a time as fit.

    Activations are kept where they fit, and computed again where only that makes room.

    Args:
        limit: bytes of one device that may be filled.
        devices: so many and no other; by default the fewest from ``least`` on.
    """
    counts = [devices] if devices else range(least, MOST_DEVICES + 1)
    for count in counts:
        tight = sharding(shape, arms, trained, batch, kind, count, offload=offload)
        if tight.memory > limit:
            if tight.memory - tight.weights - tight.gradients - tight.states > limit:
                break  # what is not shared is too much by itself
            continue
        for recompute in (False, True):
            for rows in divisors(batch.rows, count):
                found = sharding(
                    shape, arms, trained, batch, kind, count,
                    rows=rows, recompute=recompute, offload=offload,
                )  # fmt: skip
                if found.memory <= limit:
                    return found
    none = sharding(shape, arms, trained, batch, kind, devices or least, offload=offload)
    return replace(none, devices=0)
