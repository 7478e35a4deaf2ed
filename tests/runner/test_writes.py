"""Files that are written in threads: all of them, within a bound, and no failure is lost."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from paretune.runner.writes import Writes


def test_several_are_under_way_and_all_are_done_at_the_end() -> None:
    together = threading.Barrier(3, timeout=20)  # passed only by three at a time
    done: list[int] = []

    def write(number: int) -> None:
        together.wait()
        done.append(number)

    writes = Writes(threads=3)
    with writes:
        for number in range(6):
            writes.start(1, partial(write, number))
        writes.finish()
        assert sorted(done) == list(range(6))
        writes.finish()


def test_no_more_bytes_are_under_way_than_allowed() -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def write(size: int) -> None:
        nonlocal now, most
        with lock:
            now += size
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= size

    with Writes(threads=8, most_bytes=10) as writes:
        for size in (4, 4, 4, 9, 50, 3, 3, 3, 3):
            writes.start(size, partial(write, size))
    assert most == 50, "a larger file than all there is room for is written alone"
    assert now == 0


def test_a_failure_is_raised_after_the_others_have_ended() -> None:
    done = []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    def slow() -> None:
        time.sleep(0.2)
        done.append(True)

    with Writes(threads=2) as writes:
        writes.start(1, fail)
        writes.start(1, slow)
        with pytest.raises(OSError, match="No space left"):
            writes.finish()
        assert done == [True]
        writes.finish()  # said once
    with pytest.raises(OSError, match="No space left"), Writes(threads=2) as writes:
        writes.start(1, fail)


def test_what_is_under_way_ends_before_another_failure_leaves() -> None:
    """The arms' lease is given back afterwards: nothing may write under another's hands."""
    begun, done = threading.Event(), []

    def slow() -> None:
        begun.set()
        time.sleep(0.2)
        done.append(True)

    def stopped() -> None:
        with Writes(threads=1) as writes:
            writes.start(1, slow)
            writes.start(1, slow)
            assert begun.wait(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert done == [True, True]
