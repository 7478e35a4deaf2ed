"""What the cost of training follows from: the machine, the base's shape, the batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The device a study runs on.

    Attributes:
        memory: bytes.
        flops: rate of one large matrix product, FLOP/s.
        bandwidth: bytes read and written in a second; 0 where it is not known.
        kind: ``cuda`` or ``cpu``.
        devices: of this kind, that one process may use.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float = 0.0
    kind: str = "cpu"
    devices: int = 1


@dataclass(frozen=True)
class ModelShape:
    """What a model's cost follows from; counts of values, of one token where it says so.

    Attributes:
        parameters: all of them, shared ones once.
        matrices: those in linear layers, the output head not counted.
        layers: linear layers.
        blocks: repeated blocks; 1 where nothing repeats.
        outputs: values a token that linear layers give.
        kept: these, and the values that linear layers take, once where several take the same.
        widest: the same of the largest block.
        attended: width of the queries, summed over blocks.
        eager: nothing of it is compiled, on a GPU either.
    """

    parameters: int
    matrices: int
    vocabulary: int
    width: int
    layers: int
    blocks: int
    outputs: int
    kept: int
    widest: int
    attended: int
    eager: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows of one arm in a step, and tokens of a row."""

    rows: int
    length: int
