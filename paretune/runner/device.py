"""The device a study runs on, and how fast it is."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from paretune.errors import UserError
from paretune.study.shapes import Machine


def choose(name: str | None) -> torch.device:
    """The named device; a GPU where there is one, else the CPU.

    Raises:
        UserError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; use cpu or leave it out") from error
    return device


def check_compiler(device: torch.device) -> None:
    """Refuse a GPU on a machine without a C compiler, which Triton builds its kernels with.

    Raises:
        UserError: there is none.
    """
    if device.type != "cuda" or os.environ.get("CC"):
        return
    if not any(shutil.which(name) for name in ("gcc", "clang")):
        raise UserError(
            "training on a GPU needs a C compiler, for the kernels that are built when it starts; "
            "install gcc or clang, or name one in the environment variable CC"
        )


def check_free(device: torch.device, runners: Sequence[dict[str, Any]]) -> None:
    """Refuse a GPU on which another runner of the same study works; a CPU has room for more.

    Raises:
        UserError: with that process.
    """
    for runner in runners:
        if device.type == "cuda" and (runner["host"], runner["device"]) == (
            socket.gethostname(),
            str(device),
        ):
            raise UserError(
                f"process {runner['pid']} runs this study on {device} already; "
                "give another with --device, or wait for it to end"
            )


@contextmanager
def kept_threads() -> Iterator[None]:
    """Give the process its number of threads back at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def most_memory(device: torch.device) -> int:
    """The most bytes this process has taken: of the GPU it trains on, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(device: torch.device) -> Machine:
    """Name, memory, and the rates of one matrix product (in training's type) and of one copy."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Machine(
            properties.name,
            properties.total_memory,
            _rate(device, 8192, torch.bfloat16),
            _bandwidth(device),
            "cuda",
            # A worker that was given one GPU of several has that one
            torch.cuda.device_count() if device.index is None else 1,
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = torch.get_num_threads()
    return Machine(
        f"CPU, {cores} thread{'s' * (cores != 1)}", memory, _rate(device, 512, torch.float32)
    )


def _bandwidth(device: torch.device, size: int = 2**30) -> float:
    """Bytes read and written in a second by a copy on the device."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        best = max(best, 2 * size / (time.perf_counter() - started))
    return best


def _rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
