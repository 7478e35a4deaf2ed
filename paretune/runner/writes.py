"""Writing large files of several arms at a time, while the device goes on with other work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

from paretune.cores import cores

# One thread writes and hashes about 0.3 GB a second, a disk several times as much
_THREADS = 4
# Bytes under way at a time, so that the states of many arms do not fill the host's memory
_MOST_BYTES = 2**31


class Writes:
    """Files under way in threads; leaving it waits for all of them.

    Args:
        threads: by default a few, and no more than this process has cores.
        most_bytes: under way at a time; a larger file is written alone.
    """

    def __init__(self, threads: int | None = None, most_bytes: int = _MOST_BYTES) -> None:
        self._threads = threads or min(_THREADS, cores())
        self._most = most_bytes
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: dict[Future[None], int] = {}

    def start(self, size: int, write: Callable[[], None]) -> None:
        """Let ``write`` run, as soon as its ``size`` in bytes has room beside what is under way.

        Raises:
            Exception: whatever an earlier one has raised.
        """
        while self._under_way and sum(self._under_way.values()) + size > self._most:
            self._collect(wait(self._under_way, return_when=FIRST_COMPLETED).done)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="writes")
        self._under_way[self._pool.submit(write)] = size

    def finish(self) -> None:
        """Wait until all that was started is on disk.

        Raises:
            Exception: the first that was raised, after the others have ended.
        """
        self._collect(wait(self._under_way).done)

    def __enter__(self) -> Writes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            self._under_way.clear()

    def _collect(self, done: set[Future[None]]) -> None:
        for future in done:
            del self._under_way[future]
        for future in done:
            future.result()
