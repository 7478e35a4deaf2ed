"""The processes that build kernels start when they are asked to, before anything is compiled."""

from __future__ import annotations

import pytest
from torch._inductor import async_compile, config

from paretune.model.compilation import start_workers


def _start_and_wait() -> None:
    start_workers()
    assert async_compile.AsyncCompile.process_pool.cache_info().currsize == 1
    async_compile.AsyncCompile.wait_pool_ready(120)
    assert async_compile.AsyncCompile.use_process_pool(), "kernels are built in it from now on"


@pytest.mark.slow
def test_workers_are_ready_before_the_first_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_compile, "has_triton_package", lambda: True)
    pool = async_compile.AsyncCompile.process_pool
    pool.cache_clear()
    monkeypatch.setattr(async_compile.AsyncCompile, "_ready_future", None)
    try:
        with config.patch(compile_threads=2):
            _start_and_wait()
    finally:
        async_compile.shutdown_compile_workers()
        pool.cache_clear()


def test_workers_are_not_needed_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything said where torch knows no such call."""
    monkeypatch.setattr(async_compile, "has_triton_package", lambda: False)
    monkeypatch.setattr(async_compile.AsyncCompile, "process_pool", None)
    start_workers()
    monkeypatch.delattr(async_compile, "maybe_warm_pool")
    start_workers()
