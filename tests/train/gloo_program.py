"""A process whose gloo threads hardly get the processor; see test_gloo."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from paretune.train.sharded import process_group


def main() -> None:
    tensors = [torch.ones(64) for _ in range(50)]
    numbers = range(len(tensors))
    with process_group("cpu"):
        group = dist.group.WORLD  # known beyond its end, as to a mesh or a sharded model
        _starve_gloo()
        sys.setswitchinterval(1000)
        before = [sys.getrefcount(tensors[number]) for number in numbers]
        for number in numbers:
            dist.all_reduce(tensors[number])
    assert group is not None
    # A tensor that a thread still has counts once more
    print(sum(sys.getrefcount(tensors[number]) - before[number] for number in numbers))


def _starve_gloo() -> None:
    """Its two threads share one processor with this one, and run only when this one sleeps."""
    threads: list[int] = []
    while len(threads) < 2:  # they name themselves once they run
        time.sleep(0.01)
        tasks = Path("/proc/self/task").iterdir()
        threads = [int(t.name) for t in tasks if (t / "comm").read_text() == "pt_gloo_runloop\n"]
    one = {min(os.sched_getaffinity(0))}
    for thread in (0, *threads):
        os.sched_setaffinity(thread, one)
    for thread in threads:
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main()
