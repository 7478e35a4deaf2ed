"""Spectra of every matrix of one base and many tuned models, streamed over devices and cores."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from paretune.cores import cores
from paretune.spectrum.adapters import Adapter
from paretune.spectrum.matrices import Matrix
from paretune.spectrum.measures import row
from paretune.spectrum.measuring import Coming, Found, MeasuredBase, Options, Tuned
from paretune.spectrum.singular import Spectrum
from paretune.spectrum.solvers import solver_for
from paretune.spectrum.weights import Weights

# On a GPU one worker reads and computes Gram matrices while another's solver runs
STREAMS = 2
_CPU_BYTES = 2 << 30  # all workers' matrices together on a CPU


@dataclass
class _Task:
    """One matrix with the tuned models that still lack it."""

    matrix: Matrix
    tuned: list[Tuned]


def spectra(
    base: Weights,
    matrices: Sequence[Matrix],
    tuned: Sequence[Tuned],
    options: Options,
    devices: Sequence[torch.device],
    *,
    wanted: Callable[[Hashable, str], bool] = lambda key, matrix: True,
    workers: int | None = None,
) -> Iterator[Found]:
    """Measure every matrix of every tuned model, in whatever order they are done.

    Each worker (a stream of a GPU, or a core) takes one matrix at a time, reads W0 once and then
    each tuned model's W, the next one while it computes; no model is ever in memory as a whole.

    Args:
        wanted: whether the matrix of this name is still to do for this tuned model.
        workers: a device; by default a few streams on a GPU, and the cores that memory allows.

    Raises:
        UserError: a tensor cannot be read or holds values that are not finite; names it.
    """
    factors: dict[tuple[Hashable, str], Spectrum] = {}
    for one in tuned:
        if isinstance(one.source, Adapter):
            todo = [m for m in matrices if wanted(one.key, m.name)]
            for matrix, spectrum in one.source.spectra(todo, devices[0]):
                if options.delta_only:
                    yield Found(one.key, row(matrix, spectrum), {"delta": spectrum.values})
                factors[one.key, matrix.name] = spectrum
    tasks: list[_Task] = []
    for matrix in matrices:
        left = [
            one for one in tuned
            if wanted(one.key, matrix.name)
            and not (options.delta_only and (one.key, matrix.name) in factors)
        ]  # fmt: skip
        if left:
            tasks.append(_Task(matrix, left))
    # The largest first, so that no worker is left alone with one at the end
    tasks.sort(key=lambda task: -(task.matrix.smaller**3))
    yield from _Pool(base, tasks, factors, options).run(devices, workers)


class _Pool:
    """Workers that share the tasks; results come back through one queue."""

    def __init__(
        self,
        base: Weights,
        tasks: list[_Task],
        factors: dict[tuple[Hashable, str], Spectrum],
        options: Options,
    ) -> None:
        self.base = base
        self.options = options
        self.factors = factors
        self.count = sum(len(task.tuned) for task in tasks)
        self.largest = max((t.matrix for t in tasks), key=_bytes, default=None)
        self.tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        for task in tasks:
            self.tasks.put(task)
        self.results: queue.SimpleQueue[Found | BaseException] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.threads = 1

    def run(self, devices: Sequence[torch.device], workers: int | None) -> Iterator[Found]:
        """Results as they come; the first failure stops all workers and is raised."""
        if not self.count:
            return
        threads = torch.get_num_threads()
        crew = [d for d in devices for _ in range(workers or self._workers(d))]
        on_cpu = sum(d.type == "cpu" for d in crew)
        self.threads = max(1, threads // max(1, on_cpu))
        team = [threading.Thread(target=self._work, args=(d,), daemon=True) for d in crew]
        for member in team:
            member.start()
        try:
            for _ in range(self.count):
                found = self.results.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            self.stopped.set()
            for member in team:
                member.join()
            torch.set_num_threads(threads)

    def _workers(self, device: torch.device) -> int:
        if device.type == "cuda":
            return STREAMS
        largest = _bytes(self.largest) if self.largest else 1
        return max(1, min(cores(), _CPU_BYTES // largest))

    def _work(self, device: torch.device) -> None:
        try:
            if device.type == "cpu":
                # Workers that each take all cores wait for one another most of the time
                torch.set_num_threads(self.threads)
            with ThreadPoolExecutor(1) as reader, _stream(device):
                self._loop(device, reader)
        except BaseException as error:
            self.results.put(error)

    def _loop(self, device: torch.device, reader: ThreadPoolExecutor) -> None:
        reads = self._reads(device)
        solver = solver_for(device)
        waiting: deque[Coming] = deque()
        coming: Future[Any] = reader.submit(next, reads, None)
        measured: MeasuredBase | None = None
        while (item := coming.result()) is not None and not self.stopped.is_set():
            coming = reader.submit(next, reads, None)
            matrix, one, value = item
            if one is None:
                measured = MeasuredBase(matrix, value, self.base, self.options, solver)
                continue
            assert measured is not None
            waiting.append(measured.coming(one, value, self.factors.get((one.key, matrix.name))))
            while waiting and waiting[0].solved:
                self.results.put(waiting.popleft().found())
        solver.close()
        for last in waiting:
            self.results.put(last.found())

    def _reads(self, device: torch.device) -> Iterator[tuple[Matrix, Tuned | None, torch.Tensor]]:
        """W0 of a matrix, then the W of each tuned model, copied to the device."""
        while not self.stopped.is_set():
            try:
                task = self.tasks.get_nowait()
            except queue.Empty:
                return
            matrix = task.matrix
            W0 = _copy(self.base.tensor(matrix.tensor, matrix.expert), matrix, device)
            yield matrix, None, W0
            for one in task.tuned:
                if isinstance(one.source, Adapter):
                    value = one.source.tuned(matrix.tensor, W0)
                else:
                    name = one.names[matrix.tensor]
                    value = _copy(one.source.tensor(name, matrix.expert), matrix, device)
                yield matrix, one, value


def _copy(stored: torch.Tensor, matrix: Matrix, device: torch.device) -> torch.Tensor:
    """A stored tensor as [d_out, d_in] on the device; really read, not only mapped."""
    copy = stored.clone() if device.type == "cpu" else stored.to(device)
    return copy.T if matrix.transposed else copy


def _stream(device: torch.device) -> AbstractContextManager[Any]:
    if device.type != "cuda":
        return nullcontext()
    stream: Any = torch.cuda.Stream
    return torch.cuda.stream(stream(device))


def _bytes(matrix: Matrix) -> int:
    """What one worker holds of a matrix on a CPU: two Gram matrices, slices, and copies of W."""
    n, long = matrix.smaller, max(matrix.d_out, matrix.d_in)
    return 8 * 2 * n * n + 3 * 8 * n * min(long, 2048) + 3 * 4 * n * long
