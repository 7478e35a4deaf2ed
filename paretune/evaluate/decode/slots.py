"""Decoding in slots: rows that finish make room for others while the rest go on (one GPU)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.decode.station import Station
from paretune.evaluate.decode.stops import Growing
from paretune.model.slots.model import SlotModel

# Rows of all arms together: beyond this, a step's time grows with its rows
MOST_ROWS = 1024
# Share of free memory that slots may take; prompts and logits need some too
MEMORY_SHARE = 0.8
# Tokens in one pass over prompts
PREFILL_TOKENS = 16384
# Steps between two looks of the host at what was written
POLL = 16


@dataclass(frozen=True)
class Sample:
    """One answer to be written: a request, which of its samples, and where the answer grows."""

    request: GenerationRequest
    sample: int
    row: Growing


def decode(
    model: SlotModel,
    requests: Sequence[GenerationRequest],
    growing: Sequence[Sequence[Sequence[Growing]]],
    end_of_text: frozenset[int],
    *,
    entropy: bool,
    most_rows: int = MOST_ROWS,
) -> None:
    """Let all answers of all arms grow to their ends.

    Args:
        growing: [K][N][samples] answers.
    """
    for members in classes(requests):
        length = max(requests[index].longest for index in members)
        waiting = [
            deque(
                Sample(requests[index], sample, row)
                for index in members
                for sample, row in enumerate(of_arm[index])
            )
            for of_arm in growing
        ]
        rows = min(len(waiting[0]), max(1, most_rows // model.count), fitting(model, length))
        model.allocate(rows, length)
        draws = any(requests[index].temperature > 0 for index in members)
        cuts = any(requests[index].top_p < 1 for index in members)
        station = Station(
            model, rows, end_of_text, draws=draws, cuts=cuts, entropy=entropy, poll=POLL
        )
        Scheduler(model, station, waiting, rows).run()
        model.allocate(0, 0)


def classes(requests: Sequence[GenerationRequest]) -> Iterator[list[int]]:
    """Requests whose lengths differ by less than half: a slot is as long as the longest of them."""
    order = sorted(range(len(requests)), key=lambda index: (-requests[index].longest, index))
    start = 0
    for place in range(1, len(order) + 1):
        whole = requests[order[start]].longest
        if place == len(order) or 2 * requests[order[place]].longest < whole:
            yield order[start:place]
            start = place


def fitting(model: SlotModel, length: int) -> int:
    """Rows of each arm whose slots fit free memory; at least one."""
    if model.device.type != "cuda":
        return MOST_ROWS
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    row_bytes = model.count * (length * model.token_bytes + 8 * model.vocabulary)
    return max(1, int(MEMORY_SHARE * free) // row_bytes)


class Scheduler:
    """Keeps the slots of every arm filled from what is waiting for that arm.

    The host reads what was written one poll late, while the device already writes on.
    """

    def __init__(
        self, model: SlotModel, station: Station, waiting: Sequence[deque[Sample]], rows: int
    ) -> None:
        self._model = model
        self._station = station
        self._waiting = waiting
        self._rows = rows
        self._owners: list[Sample | None] = [None] * (model.count * rows)
        # Steps that a row may still take, as far as the host has launched them
        self._left = [0] * len(self._owners)
        # For everything launched and not read: whose tokens each of its columns holds
        self._unread: deque[list[Sample | None]] = deque()

    def run(self) -> None:
        """Until nothing waits and nothing runs."""
        self._admit()
        while any(self._owners):
            steps = min(POLL, max(self._left))
            if steps > 0:
                self._station.steps(steps)
                self._left = [left - steps for left in self._left]
                self._unread.append(list(self._owners))
            # What was launched last is left to the device meanwhile
            while len(self._unread) > (1 if steps > 0 else 0):
                self._read(self._unread.popleft())
            self._release()
            self._admit()
        for _ in range(len(self._unread)):
            self._station.read()

    def _read(self, owners: Sequence[Sample | None]) -> None:
        tokens_CP, entropy_CP = self._station.read()
        for column, owner in enumerate(owners):
            if owner is not None and owner.row.finish is None:
                nats = None if entropy_CP is None else entropy_CP[column]
                owner.row.extend(tokens_CP[column], nats)

    def _release(self) -> None:
        """Free the rows whose answers have ended."""
        ended = [
            row
            for row, owner in enumerate(self._owners)
            if owner is not None and owner.row.finish is not None
        ]
        for row in ended:
            self._owners[row], self._left[row] = None, 0
        self._station.idle(ended)

    def _admit(self) -> None:
        """Give free rows to what waits, arm by arm, once enough are free to be worth a pass."""
        for arm, waiting in enumerate(self._waiting):
            first = arm * self._rows
            free = [r for r in range(first, first + self._rows) if self._owners[r] is None]
            if len(free) < max(1, min(len(waiting), self._rows // 8)):
                continue
            while free and waiting:
                chunk: list[tuple[int, Sample]] = []
                prompts = 0
                while free and waiting:
                    sample = waiting[0]
                    new = not chunk or chunk[-1][1].request is not sample.request
                    width = len((chunk[0][1] if chunk else sample).request.prompt)
                    width = max(width, len(sample.request.prompt))
                    if new and chunk and (prompts + 1) * width > PREFILL_TOKENS:
                        break
                    prompts += new
                    chunk.append((free.pop(0), waiting.popleft()))
                self._fill(arm, chunk)

    def _fill(self, arm: int, chunk: Sequence[tuple[int, Sample]]) -> None:
        rows_of: dict[int, list[int]] = {}
        for row, sample in chunk:
            rows_of.setdefault(id(sample.request), []).append(row)
        requests = {id(sample.request): sample.request for _, sample in chunk}
        self._station.fill(
            arm,
            [requests[key] for key in rows_of],
            list(rows_of.values()),
            [(sample.request, sample.sample) for _, sample in chunk],
        )
        self._unread.append([sample for _, sample in chunk])
        for row, sample in chunk:
            self._owners[row] = sample
            self._left[row] = sample.request.max_new_tokens - 1
