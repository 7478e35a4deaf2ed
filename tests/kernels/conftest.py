"""Triton kernels run on a GPU, or interpreted on a CPU where TRITON_INTERPRET is 1 (.ci/run)."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch


@pytest.fixture(autouse=True)
def device() -> torch.device:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU, and TRITON_INTERPRET is not 1")
    return torch.device("cuda")
