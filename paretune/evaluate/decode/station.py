"""The state of every row on the device, and the step that moves all of them by one token."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import torch

from paretune.evaluate.decode.draw import BROKEN, Draws, entropies, next_tokens
from paretune.evaluate.decode.request import GenerationRequest
from paretune.model.slots.model import SlotModel

LOG = logging.getLogger("paretune")


class Station:
    """R = K * rows rows; on a GPU a step is one CUDA graph, captured before any row runs.

    A row knows by itself when it has ended with an end-of-text token, its length, or logits that
    are not numbers: its slot is idle from then on. The host ends rows for stop strings.
    """

    def __init__(
        self,
        model: SlotModel,
        rows: int,
        end_of_text: Collection[int],
        *,
        draws: bool,
        cuts: bool,
        entropy: bool,
        poll: int,
    ) -> None:
        R, device = model.count * rows, model.device
        self._model = model
        self._ends_E = torch.tensor(sorted(end_of_text), dtype=torch.int64, device=device)
        self._token_R = torch.zeros(R, dtype=torch.int64, device=device)
        self._left_R = torch.zeros(R, dtype=torch.int32, device=device)
        self._position_R = torch.zeros(R, dtype=torch.int32, device=device)
        self._draws: Draws | None = None
        if draws:
            zeros_R = torch.zeros(R, device=device)
            self._draws = Draws(zeros_R, zeros_R + 1, zeros_R.to(torch.int32), cuts)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._out_PR = torch.zeros(poll, R, dtype=torch.int64, device=device)
        self._entropy_PR = torch.zeros(poll, R, device=device) if entropy else None
        self._copies: deque[tuple[list[torch.Tensor], Any]] = deque()
        self._graph: Any = self._capture() if device.type == "cuda" else None

    def _capture(self) -> Any:
        """The step as a CUDA graph; None where the model does something a graph cannot hold."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()  # compiles kernels and chooses algorithms; all slots are idle
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            LOG.info("decoding step by step, without a CUDA graph: %s", error)
            return None
        return graph

    @torch.no_grad()
    def _step(self) -> None:
        length_R = self._model.cache.length_R
        live_R = length_R >= 0
        logits_RV = self._model.step(self._token_R)
        token_R, finite_R = next_tokens(logits_RV, self._draws, self._position_R)
        self._out_PR.index_copy_(0, self._at, token_R.where(finite_R, BROKEN)[None])
        if self._entropy_PR is not None:
            self._entropy_PR.index_copy_(0, self._at, entropies(logits_RV)[None])
        self._at += 1
        self._position_R += 1
        self._left_R -= 1
        going_R = live_R & finite_R & (self._left_R > 0) & ~torch.isin(token_R, self._ends_E)
        length_R.copy_((length_R + 1).where(going_R, -1))
        self._token_R.copy_(token_R)

    def steps(self, count: int) -> None:
        """Launch steps of all rows; what they write is read later with :meth:`read`."""
        self._at.zero_()
        for _ in range(count):
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        self._keep(
            self._out_PR[:count].T, None if self._entropy_PR is None else self._entropy_PR[:count].T
        )

    def _keep(self, tokens_CP: torch.Tensor, entropy_CP: torch.Tensor | None) -> None:
        """Copy what was written to the host while the device goes on."""
        event = None
        kept = [tokens_CP] if entropy_CP is None else [tokens_CP, entropy_CP]
        if tokens_CP.is_cuda:
            pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in kept]
            kept = [p.copy_(t, non_blocking=True) for p, t in zip(pinned, kept, strict=True)]
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        else:
            kept = [t.clone() for t in kept]
        self._copies.append((kept, event))

    def read(self) -> tuple[list[list[int]], list[list[float]] | None]:
        """Tokens [columns, steps] of the oldest launch not read yet, and entropies if asked for.

        The columns are all rows after :meth:`steps`, the rows given after :meth:`fill`.
        """
        kept, event = self._copies.popleft()
        if event is not None:
            event.synchronize()
        return kept[0].tolist(), kept[1].tolist() if len(kept) > 1 else None

    def idle(self, rows: Sequence[int]) -> None:
        """Stop rows."""
        if rows:
            index = torch.tensor(rows, device=self._token_R.device)
            self._model.cache.length_R[index] = -1

    @torch.no_grad()
    def fill(
        self,
        arm: int,
        requests: Sequence[GenerationRequest],
        rows: Sequence[Sequence[int]],
        samples: Sequence[tuple[GenerationRequest, int]],
    ) -> None:
        """Run prompts of one arm into their rows and choose each row's first token.

        Args:
            rows: for each request, the rows of its samples.
            samples: for each row in that order, its request and sample.
        """
        device = self._token_R.device
        logits_NV = self._model.prefill(arm, [request.prompt for request in requests], rows)
        source = torch.tensor([i for i, own in enumerate(rows) for _ in own], device=device)
        index = torch.tensor([row for own in rows for row in own], device=device)
        own = Draws.of(samples, device)
        position = torch.zeros(len(index), dtype=torch.int32, device=device)
        logits_RV = logits_NV[source]
        token, finite = next_tokens(logits_RV, own, position)
        if self._draws is not None:
            self._draws.temperature[index] = 0.0 if own is None else own.temperature
            self._draws.top_p[index] = 1.0 if own is None else own.top_p
            self._draws.key[index] = 0 if own is None else own.key
        left = torch.tensor([r.max_new_tokens - 1 for r, _ in samples], dtype=torch.int32)
        self._token_R[index] = token
        self._position_R[index] = 1
        self._left_R[index] = left.to(device)
        ended = ~finite | torch.isin(token, self._ends_E) | (left.to(device) <= 0)
        length_R = self._model.cache.length_R
        length_R[index] = length_R[index].masked_fill(ended, -1)
        spread = None if self._entropy_PR is None else entropies(logits_RV)[:, None]
        self._keep(token.where(finite, BROKEN)[:, None], spread)
