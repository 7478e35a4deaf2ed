"""Where the time of a step goes, by kind of kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

KINDS = (
    ("attention", ("flash", "fmha", "attention", "cudnn_generated", "sdpa")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "gemv", "splitk", "cublas")),
    ("fused elementwise", ("triton",)),
)


def kind(kernel: str) -> str:
    """The kind of a kernel, from its name."""
    for name, marks in KINDS:
        if any(mark in kernel.lower() for mark in marks):
            return name
    return "other"


def profile(trainer: Trainer, steps: int = 2) -> str:
    """Shares of a step's wall time, as ``attention 12%, ...``; the rest is waiting."""
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0) for _ in trainer.trainee.arms]

    def run() -> None:
        for t in range(100, 100 + steps):
            trainer.step(t, always)

    return shares_of(run, steps)


def shares_of(run: Callable[[], Any], steps: int) -> str:
    """Shares of the wall time of what ``run`` does; its longest kernels are printed.

    Args:
        steps: how many equal parts it has.
    """
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
    wall = begin.elapsed_time(end) * 1000
    spent: dict[str, float] = defaultdict(float)
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    events: Any = seen.events()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[kind(event.name)] += event.device_time
            kernels[event.name][0] += event.device_time
            kernels[event.name][1] += 1
    for name, (time, count) in sorted(kernels.items(), key=lambda item: -item[1][0])[:14]:
        print(f"    {time / wall:6.1%} {count / steps:6.0f}x {time / count:8.1f} us {name[:90]}")
    shares = {name: time / wall for name, time in sorted(spent.items(), key=lambda i: -i[1])}
    shares["waiting"] = max(0.0, 1 - sum(shares.values()))
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
