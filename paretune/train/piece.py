"""Forward and backward of one piece of a batch at fixed shapes, compiled and replayed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from paretune.data.blocks import Batch
from paretune.errors import first_line
from paretune.model.attention import attending, can_attend, segment_bounds
from paretune.model.passes import Pass
from paretune.model.regions import Compiler, Regions
from paretune.model.trainee import Head, Trainee
from paretune.train.labelled import labelled_positions
from paretune.train.loss import arm_losses, next_tokens
from paretune.train.optim import put

LOG = logging.getLogger("paretune")
# Runs before a graph is captured: compilation, autotuning and workspaces are behind it then
_WARM_UP = 2


@dataclass(frozen=True)
class Piece:
    """Rows of all arms of a pass, arm-major [K * B, S], with what the loss needs of them."""

    ids: torch.Tensor
    labels: torch.Tensor
    weight_K: torch.Tensor
    positions: torch.Tensor | None = None
    segments: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    labelled_HC: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        batches: list[Batch],
        part: slice,
        device: torch.device,
        capacity: int = 0,
        heads: Sequence[Head] = (),
    ) -> Piece:
        """The same rows of each arm's batch, on the device; arms' weights are of whole batches.

        Args:
            capacity: segments of a row there is room for, where rows are given as bounds.
            heads: the output heads, where they are to be computed for labels alone. That is for
                pairs: in a text only the last position has none.
        """
        targets = [max(1, int(batch.loss_mask[:, 1:].sum())) for batch in batches]
        ids = torch.cat([b.input_ids[part] for b in batches])
        labels = next_tokens(ids, torch.cat([b.loss_mask[part] for b in batches]))
        positions = [b.position_ids[part] for b in batches if b.position_ids is not None]
        segments = [b.segments[part] for b in batches if b.segments is not None]
        apart = torch.cat(segments) if segments else None
        bounds = None
        if apart is not None and capacity:
            bounds = put(segment_bounds(apart, capacity * len(apart)), device)
        labelled = None
        if apart is not None and heads:
            labelled = labelled_positions(labels, heads, device.type)
        return cls(
            ids=put(ids, device),
            labels=put(labels, device),
            weight_K=put(torch.tensor(targets, dtype=torch.float32).reciprocal(), device),
            positions=put(torch.cat(positions), device) if positions else None,
            segments=put(apart, device) if apart is not None and bounds is None else None,
            bounds=bounds,
            labelled_HC=put(labelled, device) if labelled is not None else None,
        )

    def copy_(self, other: Piece) -> None:
        """Take over another piece's values, in place."""
        for name, own in self._tensors():
            own.copy_(getattr(other, name), non_blocking=True)

    def clone(self) -> Piece:
        """A piece with tensors of its own."""
        return Piece(**{name: own.clone() for name, own in self._tensors()})

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None:
                yield each.name, value


@dataclass
class _Graph:
    """A captured piece: where its inputs go and where its losses come out."""

    piece: Piece
    loss_K: torch.Tensor
    graph: torch.cuda.CUDAGraph


class PieceRunner:
    """Adds the gradients of one piece to those of its arms, and gives their losses.

    On a CPU this is plain eager code. On a GPU the model's repeated blocks are compiled for the
    shapes of the plan, and from the third run on the whole piece, forward and backward, is replayed
    as one CUDA graph, so that small bases do not wait for kernel launches. A full arm's attention
    is transformers' own there, which makes masks, so that its pieces are launched anew.

    Args:
        compiler: of the model's blocks. By default ``inductor`` on a GPU, with products merged and
            activations recomputed, unless the base is quantised or an arm has attention dropout,
            whose random numbers are drawn for each piece; none on a CPU.
        graphs: replay CUDA graphs; by default where blocks are compiled and no masks are made.

    Attributes:
        without: what has failed for this model and is done without.
    """

    def __init__(
        self, trainee: Trainee, *, compiler: Compiler | None = None, graphs: bool | None = None
    ) -> None:
        cuda = trainee.device.type == "cuda"
        draws = any(arm.attention_dropout for arm in trainee.arms)
        self.trainee = trainee
        plain = not draws and trainee.base.quantise is None
        compiler = compiler or Compiler("inductor" if cuda and plain else "none")
        with trainee.trying() as arms, trainee.autocast():
            self.attends = compiler.backend != "none" and can_attend(
                trainee.model, trainee.device, arms
            )
        # transformers makes masks while a graph is captured, unless the attention wants none
        self.graphs = cuda and self.attends if graphs is None else graphs
        self._linear_head = trainee.head_is_linear
        self._regions = Regions(trainee.model, compiler)
        # Graphs cannot be captured on the default stream, nor autograd's nodes change streams
        own = cuda and graphs is not False
        self._stream = torch.cuda.Stream(trainee.device) if own else None  # type: ignore[no-untyped-call]
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._runs: Counter[tuple[int, ...]] = Counter()
        self.without: list[str] = []

    def heads(self, group: Pass) -> list[Head]:
        """The output heads of a pass; none where logits are used as the model gives them."""
        return self.trainee.heads(group) if self._linear_head else []

    def run(self, group: Pass, piece: Piece, step: int, first_vector: int) -> torch.Tensor:
        """Losses [K] of a piece (means over whole batches); gradients are added to the flats."""
        if self._stream is None:
            with self._applied(group, step, first_vector):
                return self._eager(group, piece)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss_K = self._on_stream(group, piece, step, first_vector)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss_K

    def simplify(self, error: RuntimeError) -> bool:
        """Give up what an error can have come from: compiled blocks, or replayed graphs.

        There are models that a compiler cannot read, and layers whose work on a GPU depends on the
        values they meet. They train all the same, only slower.

        Returns:
            Whether there was something left to give up.
        """
        refused = isinstance(error, TorchDynamoException | InductorError)
        if self.graphs and not refused:
            self.graphs, what = False, "CUDA graphs"
        elif self._regions.compiles:
            self._regions, what = Regions(self.trainee.model, Compiler("none")), "compiled blocks"
        else:
            return False
        self.without.append(what)
        LOG.warning("training goes on without %s, more slowly: %s", what, first_line(error))
        self.release()
        return True

    def release(self) -> None:
        """Give back the memory that captured graphs hold; they are captured again when needed."""
        self._graphs.clear()
        self._runs.clear()
        if self._stream is not None:
            torch.cuda.empty_cache()

    def _on_stream(self, group: Pass, piece: Piece, step: int, first_vector: int) -> torch.Tensor:
        shape = (group.start, *piece.ids.shape)
        self._runs[shape] += 1
        if not self.graphs or self._runs[shape] <= _WARM_UP:
            with self._applied(group, step, first_vector):
                return self._eager(group, piece)
        # Whatever the number of labels, the loss has slices of one shape: all is compiled by now
        labelled = piece.labelled_HC
        key = (*shape, 0 if labelled is None else labelled.shape[1])
        if key not in self._graphs:
            self._graphs[key] = self._captured(group, piece, step, first_vector)
        graph = self._graphs[key]
        graph.piece.copy_(piece)
        self.trainee.draw(group, step, first_vector)
        graph.graph.replay()
        return graph.loss_K.clone()

    def _captured(self, group: Pass, piece: Piece, step: int, first_vector: int) -> _Graph:
        own, graph = piece.clone(), torch.cuda.CUDAGraph()
        # Graphs run one after another and each one's losses are copied at once, so that all of them
        # can compute in the same memory
        pool = next((each.graph.pool() for each in self._graphs.values()), None)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        with (
            self._applied(group, step, first_vector),
            torch.cuda.graph(graph, pool=pool, stream=self._stream),
        ):
            loss_K = self._eager(group, own)
        return _Graph(own, loss_K, graph)

    @contextmanager
    def _applied(self, group: Pass, step: int, first_vector: int) -> Iterator[None]:
        regions = self._regions.compiled(checkpoint=self.trainee.checkpoint)
        attention = attending(self.trainee.model) if self.attends else nullcontext()
        adapters = self.trainee.applied(group, step=step, first_vector=first_vector)
        with regions, attention, adapters:
            yield

    def _eager(self, group: Pass, piece: Piece) -> torch.Tensor:
        trainee = self.trainee
        inputs: dict[str, Any] = {
            "position_ids_NS": piece.positions,
            "segments_NS": piece.segments,
            "bounds": piece.bounds,
        }
        heads = self.heads(group)
        if heads:
            hidden = trainee.forward(piece.ids, part="hidden", use_cache=False, **inputs)[0]
        else:
            heads = [(None, None)]
            # Logits that are more than a product with the head are used as they come
            hidden = trainee.forward(piece.ids, use_cache=False, **inputs).logits
        parts = [each.chunk(len(heads)) for each in (hidden, piece.labels, piece.weight_K)]
        labelled = [None] * len(heads) if piece.labelled_HC is None else piece.labelled_HC
        loss_K = torch.cat(
            [
                arm_losses(own, head, bias, labels, weight, at, self._kept_gradient(head))
                for (head, bias), own, labels, weight, at in zip(
                    heads, *parts, labelled, strict=True
                )
            ]
        )
        loss_K.sum().backward()  # type: ignore[no-untyped-call]
        return loss_K.detach()

    def _kept_gradient(self, head_VD: torch.Tensor | None) -> torch.Tensor | None:
        """Where the head's gradient is kept, if it is one of the values trained on this GPU."""
        if head_VD is None or self._stream is None or not self.trainee.flats:
            return None
        return head_VD.grad if head_VD.requires_grad and head_VD.is_leaf else None
