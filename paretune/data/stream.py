"""Reading a stream that may fail or hang in the middle: tried again, from the row it stopped at."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from paretune.errors import Fault, UserError

LOG = logging.getLogger("paretune")
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between tries that bring no new row; after the last one the stream is given up."""
PATIENCE = 60.0
"""Seconds without a row after which a stream counts as hanging."""

# Whose errors mean that the connection failed, not that something is wrong with the request
_CLIENTS = {"httpx", "httpcore", "aiohttp", "requests", "urllib3", "http"}


def resumed(open_at: Callable[[int], Iterator[Any]], *, what: str) -> Iterator[Any]:
    """The rows of a stream, opened again at the row where it failed or stood still.

    After opening again, the last row is read once more and must be what it was, so that a data set
    that changes in between is noticed.

    Args:
        open_at: a fresh iterator over the rows from this number on.
        what: the stream, for messages; each new try is told as a warning.

    Raises:
        Fault: no new row after all tries; the last error is its cause.
        UserError: the data set changed while it was read.
    """
    count, last, tries = 0, None, 0
    while True:
        again = count > 0
        try:
            for row in _watched(open_at, max(0, count - 1)):
                if again:
                    if row != last:
                        raise UserError(
                            f"{what} changed while it was read (row {count - 1} is another now); "
                            "pin its revision"
                        )
                    again = False
                    continue
                count, last, tries = count + 1, row, 0
                yield row
            if again:
                raise UserError(f"{what} changed while it was read (it is shorter now)")
            return
        except UserError:
            raise
        except Exception as error:
            if not (count or passing(error)):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if tries == len(PAUSES):
                raise Fault(
                    f"{what} stopped at row {count} ({reason}), and {tries} further tries brought "
                    "no more. The same command tries again"
                ) from error
            pause = PAUSES[tries]
            LOG.warning("%s: %s; going on at row %d in %.0f s", what, reason, count, pause)
            time.sleep(pause)
            tries += 1


def passing(error: BaseException) -> bool:
    """Whether an error may go away by itself: the connection's, or a server's 5xx or 429."""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return int(status) >= 500 or int(status) == 429
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or module in _CLIENTS


def _watched(open_at: Callable[[int], Iterator[Any]], start: int) -> Iterator[Any]:
    """Rows read by a thread of their own, so that a read that never returns can be given up."""
    rows: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=64)
    over = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not over.is_set():
            try:
                rows.put((kind, value), timeout=0.5)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for row in open_at(start):
                put("row", row)
                if over.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    threading.Thread(target=read, daemon=True, name="stream").start()
    try:
        while True:
            try:
                kind, value = rows.get(timeout=PATIENCE)
            except queue.Empty:
                raise TimeoutError(f"no row for {PATIENCE:.0f} s") from None
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        over.set()
